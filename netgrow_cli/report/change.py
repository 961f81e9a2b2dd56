"""The report of a change: a summary for people on standard error, the path or one JSON object on standard output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from netgrow_cli.report.console import error_console, shape_text

if TYPE_CHECKING:
    from rich.console import Console

    from netgrow_cli.job import Report

MOST_TENSORS = 24


def print_report(report: Report, *, as_json: bool, path: Path | None) -> None:
    """Print it. path: what standard output is told, None where the checkpoint itself goes there."""
    from netgrow_cli.commands.common import print_json

    if as_json:
        for line in report.warnings:
            error_console().print(f"warning: {line}", style="yellow", markup=False)
        print_json(report.as_json())
        return
    _summary(report, error_console())
    if path is not None and not report.dry_run:
        print(path)


def _summary(report: Report, console: Console) -> None:
    for line in report.assumed:
        console.print(f"assumed: {line}", style="dim", markup=False)
    for line in report.notes:
        console.print(line, markup=False)
    for change in report.as_json()["widths"]:
        layers = ", ".join(change["layers"])
        console.print(
            f"[bold]{change['name']}[/]  {change['before']} → [bold]{change['after']}[/] units  [dim]({layers})[/]"
        )
    _tensors(report, console)
    for entry in report.plan.code:
        where = f"  [dim]{entry.source}[/]" if entry.source else ""
        console.print(f"model code: {entry.what} of {entry.layer}: {entry.before} → {entry.after}{where}")
    _proof(report, console)
    for line in report.warnings:
        console.print(f"warning: {line}", style="yellow", markup=False)
    if report.dry_run:
        console.print("dry run: nothing was written", style="dim")
    else:
        console.print(f"done in {report.seconds:.1f} s", style="dim")


def _tensors(report: Report, console: Console) -> None:
    names = [name for name, _, _ in report.tensors[:MOST_TENSORS]]
    width = max(map(len, names), default=0)
    for name, before, after in report.tensors[:MOST_TENSORS]:
        text = f"{shape_text(before)} → {shape_text(after)}" if before != after else f"{shape_text(before)}, values"
        console.print(f"  {name:<{width}}  {text}", markup=False)
    if len(report.tensors) > MOST_TENSORS:
        console.print(f"  ... and {len(report.tensors) - MOST_TENSORS} more tensors (--json lists all)")


def _proof(report: Report, console: Console) -> None:
    found = report.equivalence
    if found is None:
        return
    data = "random" if found.origin == "random" else f"({found.origin})"
    seen = f"{found.probes} {data} probes in {found.dtype}"
    if found.equal:
        console.print(f"[green]equal[/]: outputs differ by {found.max_rel:.1e} of their size on {seen}")
    else:
        console.print(
            f"[yellow]drift[/]: outputs differ by {found.max_rel:.3g} of their size on {seen} (--allow-drift)"
        )
    folded = report.folded
    if folded is not None and folded.whole:
        console.print(f"[green]folded back[/]: all {folded.exact} tensors come back bit for bit")
    if report.learnable is not None and report.learnable.good:
        console.print(f"[green]learnable[/]: all {report.learnable.units} units get gradients, no two alike")
