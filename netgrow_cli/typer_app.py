"""The command line as typer reads it: help, and what is wrong with what was typed. Importing it takes its time."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from netgrow_cli import __version__
from netgrow_cli.commands.declare import Argument, Given

Command = Callable[..., int]


class PastTyperError(Exception):
    """Carries an error through typer, which has endings of its own for interrupts and broken pipes."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def make_app(commands: Mapping[str, Command]) -> typer.Typer:
    """The application of these commands, in their order."""
    app = typer.Typer(
        name="netgrow",
        help="Change the width of trained networks offline, proven equal.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)
    for name, command in commands.items():
        app.command(name)(_for_typer(command))
    return app


def run_app(commands: Mapping[str, Command]) -> Any:
    """Run the command that `sys.argv` names; its exit code."""
    try:
        return make_app(commands)(standalone_mode=False)
    except PastTyperError as passed:
        raise passed.error from None


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"netgrow {__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    del version


def _for_typer(command: Command) -> Command:
    @functools.wraps(command)
    def run(**arguments: Any) -> int:
        try:
            return command(**arguments)
        except (KeyboardInterrupt, OSError, EOFError) as error:
            raise PastTyperError(error) from error

    own = inspect.signature(command, eval_str=True)
    told = [
        item.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_told(item.annotation))
        for item in own.parameters.values()
    ]
    run.__signature__ = own.replace(parameters=told)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in told}
    return run


def _told(hint: Any) -> Any:
    """An annotation in typer's words."""
    declared = getattr(hint, "__metadata__", (None,))[0]
    if isinstance(declared, Given):
        return Annotated[hint.__origin__, typer.Option(*declared.flags, help=declared.help, **declared.more)]
    if isinstance(declared, Argument):
        return Annotated[hint.__origin__, typer.Argument(metavar=declared.metavar, help=declared.help)]
    return hint
