"""Every error that netgrow shows, and the exit code that goes with it.

A message is one line: what was found, where, what was expected, and what to type instead.
The command line prints it without a traceback; the Python API raises it.
"""

from __future__ import annotations


class NetgrowError(Exception):
    """Base of all errors that a user can cause; `exit_code` is the process's."""

    exit_code = 2


class UsageError(NetgrowError):
    """The command's words are off: an unknown layer, flags that exclude each other."""


class CheckpointError(NetgrowError):
    """A checkpoint that is missing, damaged, unsafe or not a checkpoint, or a target that cannot be written."""


class SpecError(NetgrowError):
    """A spec that is not valid, or that does not fit the checkpoint."""


class Refused(NetgrowError):
    """The request is clear, and the topology does not allow it; the message says why and what would work."""

    exit_code = 3


class NotEquivalent(NetgrowError):
    """The changed network does not compute the same function; nothing was written."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
