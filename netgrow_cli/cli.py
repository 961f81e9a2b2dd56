"""The command line: one file a command under `commands/`; here they are put together, and errors become exit codes."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Annotated, Any

import typer

from netgrow_cli import __version__
from netgrow_cli.commands import (
    apply,
    check,
    expand,
    graph,
    infer,
    inspect,
    prune,
    recycle,
    scores,
    split,
    trace,
    verify,
)
from netgrow_cli.commands.common import given
from netgrow_cli.errors import NetgrowError, UsageError, first_line

app = typer.Typer(
    name="netgrow",
    help="Change the width of trained networks offline, proven equal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"netgrow {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, given("--version", "Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    del version


def _add(command: Callable[..., int]) -> None:
    app.command(command.__name__)(command)


@app.command("diff")
def _diff(
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    values: Annotated[bool, given("--values", "Compare values too.")] = False,
    as_json: Annotated[bool, given("--json", "One JSON object on standard output.")] = False,
    key: Annotated[str | None, given("--key", "Where the state dict lies in the checkpoints.")] = None,
) -> int:
    """Layer shapes of two checkpoints side by side; exit 0 the same, 1 different."""
    from netgrow_cli.commands.diff import diff

    return diff(a, b, values, as_json, key=key)


@app.command("convert")
def _convert(
    ckpt: Annotated[str, typer.Argument(metavar="CKPT")],
    output: Annotated[str, given(("-o", "--output"), "The new file; its ending says the format.")],
    force: Annotated[bool, given("--force", "Replace an output that exists.")] = False,
    as_json: Annotated[bool, given("--json", "One JSON object on standard output.")] = False,
    key: Annotated[str | None, given("--key", "Where the state dict lies in the checkpoint.")] = None,
    shard_size: Annotated[
        str | None, given("--shard-size", "Write a folder with shards: 5GB, 500MiB, bytes.", metavar="SIZE")
    ] = None,
) -> int:
    """Convert between .pt and .safetensors, files and folders, and torch.distributed.checkpoint (.dcp)."""
    from netgrow_cli.checkpoint.sharding import parse_size
    from netgrow_cli.commands.convert import convert

    return convert(ckpt, output, force, as_json, key=key, shard_size=parse_size(shard_size) if shard_size else None)


for _command in (
    inspect.inspect,
    check.check,
    infer.infer,
    expand.expand,
    split.split,
    prune.prune,
    recycle.recycle,
    apply.apply,
    scores.scores,
    graph.graph,
    trace.trace,
    verify.verify,
):
    _add(_command)


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


class _PastTyperError(Exception):
    """Carries an error through typer, which has endings of its own for interrupts and broken pipes."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def _past_typer(command: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> int:
        try:
            return command(*arguments, **options)
        except (KeyboardInterrupt, OSError, EOFError) as error:
            raise _PastTyperError(error) from error

    return run


for _registered in app.registered_commands:
    if _registered.callback is not None:
        _registered.callback = _past_typer(_registered.callback)


def main() -> None:
    """The entry point: run, and turn every error into one line and its exit code."""
    code: Any = 0
    try:
        with _orderly_ends():
            try:
                code = app(standalone_mode=False)
            except _PastTyperError as passed:
                raise passed.error from None
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
