"""Paths that may be `-`: a checkpoint from standard input, a result to standard output. Imports no typer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from netgrow_cli.errors import NetgrowError, UsageError

STANDARD = "-"


@contextlib.contextmanager
def readable(source: str) -> Iterator[Path]:
    """The path of an argument; standard input is kept in a temporary file meanwhile."""
    if not source:
        raise UsageError("the checkpoint's name is empty")
    if source != STANDARD:
        yield Path(source)
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("- reads a checkpoint from standard input, which is no file and no pipe")
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory(prefix="netgrow-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield path
        except NetgrowError as error:
            raise type(error)(as_typed(str(error), source, path)) from None


def as_typed(text: str, source: str, path: Path) -> str:
    """A message about a file, which is called standard input where it only keeps that."""
    return text.replace(str(path), "standard input") if source == STANDARD else text


def only_one_standard(*sources: str) -> None:
    """Standard input can be read once. Raises UsageError."""
    if sources.count(STANDARD) > 1:
        raise UsageError("standard input holds one checkpoint; give the other's name")


def one_file(source: str) -> None:
    """Standard output holds one file, and a folder is many. Raises UsageError."""
    if source != STANDARD and (Path(source).is_dir() or source.endswith(".index.json")):
        raise UsageError(f"{source} is a folder, which standard output cannot hold; give -o FOLDER")


@contextlib.contextmanager
def destination(output: str | None, to_standard: bool) -> Iterator[Path | None]:
    """Where to write: a path, None for the default, or a temporary file on its way to standard output."""
    if not to_standard:
        if output is not None and not Path(output).name:
            raise UsageError(f"-o {output or repr(output)} names no file")
        yield Path(output) if output is not None else None
        return
    if sys.stdout.isatty():
        raise UsageError("the checkpoint would go to the terminal; give -o FILE, or send standard output to a file")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="netgrow-") as folder:
        yield Path(folder) / "stdout"


def send(path: Path) -> None:
    """A file to standard output."""
    import shutil

    with path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()
