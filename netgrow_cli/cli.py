"""The command line: one file a command under `commands/`; here they are put together, and errors become exit codes."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from netgrow_cli import __version__
from netgrow_cli.commands.declare import read_quickly
from netgrow_cli.errors import NetgrowError, UsageError, first_line

COMMANDS = (
    "diff",
    "convert",
    "inspect",
    "check",
    "infer",
    "expand",
    "split",
    "prune",
    "recycle",
    "apply",
    "scores",
    "graph",
    "trace",
    "verify",
)
"""Each is a function of that name in a module of that name, which is imported when it is needed."""

INTERRUPTED = 130


def _command(name: str) -> Callable[..., int]:
    found: Callable[..., int] = getattr(importlib.import_module(f"netgrow_cli.commands.{name}"), name)
    return found


def _run() -> Any:
    """Run the command that was typed; its exit code."""
    name, *words = sys.argv[1:] or [""]
    if name == "--version" and not words:
        print(f"netgrow {__version__}")
        return 0
    if name in COMMANDS:
        command = _command(name)
        arguments = read_quickly(command, words)
        if arguments is not None:
            return command(**arguments)
    from netgrow_cli.typer_app import run_app

    return run_app({name: _command(name) for name in COMMANDS})


class _Ended(BaseException):
    """The system or a person asks the process to end; what it staged is removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _orderly_ends() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end the process as an exception does, not on the spot."""
    before: dict[int, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:
        for other in before:  # a second one must not interrupt the cleaning up
            signal.signal(other, signal.SIG_IGN)
        raise _Ended(number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # (nohup ignores SIGHUP, and that must stay; a host program may have handlers of its own.)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not in the main thread
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def process() -> None:
    """`main` for a process that is there for nothing else.

    It ends at once, and the system takes all memory back, where Python would take object after object apart: a tenth
    of the time of a short command. Not where torch is, which brings other people's code and what that does at the end.
    """
    # numpy's threads wait a tenth of a second for their first work at full speed, which somebody else could use.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    try:
        main()
    except SystemExit as ended:
        if "torch" in sys.modules or not isinstance(ended.code, int):
            raise
        for stream in (sys.stdout, sys.stderr):  # (`main` has found out about output that cannot be written)
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(ended.code)


def main() -> None:
    """Run, and turn every error into one line and its exit code."""
    code: Any = 0
    # A start makes many objects and hardly a cycle; looking for cycles as often as usual takes a twentieth of it.
    gc.set_threshold(50_000)
    try:
        with _orderly_ends():
            code = _run()
            _flush()
    except NetgrowError as error:
        _complain(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted; nothing was written")
        code = INTERRUPTED
    except _Ended as ended:
        _complain(f"ended by {signal.Signals(ended.number).name}; what was not finished is removed")
        code = 128 + ended.number
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody to tell.
        _to_nowhere(sys.stdout, sys.stderr)
    except (OSError, EOFError, MemoryError, OverflowError, RuntimeError) as error:
        code = _from_outside(error)
    except Exception as error:
        code = _usage(error)
    sys.exit(code if isinstance(code, int) else 0)


def _flush() -> None:
    """What cannot be written is found out here and not by the interpreter at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere(sys.stdout)
    except OSError as error:
        _to_nowhere(sys.stdout)
        raise UsageError(f"standard output cannot be written: {error.strerror}") from None


def _to_nowhere(*streams: Any) -> None:
    """Nothing that is left in a stream reaches what it was."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _from_outside(error: Exception) -> int:
    """The machine's limits, in its own words."""
    if os.environ.get("NETGROW_DEBUG"):
        raise error
    if isinstance(error, (MemoryError, OverflowError)) or "can't allocate memory" in str(error):
        _complain("not enough memory for so much; nothing was written")
    elif isinstance(error, OSError) and error.strerror:
        _complain(f"{error.filename or 'reading or writing failed'}: {error.strerror}")
    else:
        _complain(f"{type(error).__name__}: {first_line(error)} (NETGROW_DEBUG=1 shows where)")
    return 2


def _usage(error: Exception) -> int:
    """Errors of the argument parser say what is wrong themselves; anything else is a bug of ours."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        if error.format_message():
            _complain(f"{error.format_message()} (netgrow --help)")
        return int(error.exit_code)
    if type(error).__name__ == "Abort":
        _complain("interrupted; nothing was written")
        return INTERRUPTED
    if os.environ.get("NETGROW_DEBUG"):
        raise error
    _complain(f"a bug in netgrow: {type(error).__name__}: {first_line(error)} (NETGROW_DEBUG=1 shows where)")
    return 2


def _complain(message: str) -> None:
    print(f"netgrow: {message}", file=sys.stderr)
