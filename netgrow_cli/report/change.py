"""The report of a change: a summary for people on standard error, the path or one JSON object on standard output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from netgrow_cli.report.console import error_console, shape_text

if TYPE_CHECKING:
    from netgrow_cli.jobs.job import Report
    from netgrow_cli.report.console import Console
    from netgrow_cli.surgery.change import WidthChange

MOST_TENSORS = 24


def print_report(report: Report, *, as_json: bool, path: Path | None) -> None:
    """Print it. path: what standard output is told, None where the checkpoint itself goes there."""
    from netgrow_cli.commands.common import print_json

    if as_json:
        with error_console() as console:
            for line in report.warnings:
                console.print(f"warning: {line}", style="yellow", markup=False)
        print_json(report.as_json())
        return
    print_summary(report)
    if path is not None and not report.dry_run:
        print(path)


def print_summary(report: Report) -> None:
    """The summary for people, on standard error."""
    with error_console() as console:
        _summary(report, console)


def _summary(report: Report, console: Console) -> None:
    for line in report.assumed:
        console.print(f"assumed: {line}", style="dim", markup=False)
    for line in report.notes:
        console.print(line, markup=False)
    for change in report.plan.changes:
        console.print(_width_line(report, change))
    _tensors(report, console)
    _configuration(report, console)
    followed = report.config is not None and report.config.whole
    for entry in () if followed else report.plan.code:
        where = "".join(f"  [dim]{_plain(item)}[/]" for item in (entry.source, entry.attribute) if item)
        console.print(f"model code: {entry.what} of {entry.layer}: {entry.before} → {entry.after}{where}")
    _proof(report, console)
    _along(report, console)
    for line in report.warnings:
        console.print(f"warning: {line}", style="yellow", markup=False)
    if report.dry_run:
        console.print("dry run: nothing was written", style="dim")
    else:
        console.print(f"done in {report.seconds:.1f} s", style="dim")


def _configuration(report: Report, console: Console) -> None:
    """What follows in config.json, and where the new one is."""
    config = report.config
    if config is None or not config.changes:
        return
    for change in config.changes:
        before = "(not stated)" if change.before is None else change.before
        console.print(f"{config.path.name}: {change.key} {before} → {change.after}", markup=False)
    if report.dry_run:
        return
    if config.output.name == "config.json":
        console.print(f"new configuration: {config.output}", markup=False)
    else:
        console.print(f"new configuration: {config.output}; it belongs beside the weights as config.json", markup=False)


def _width_line(report: Report, change: WidthChange) -> str:
    """What becomes of one width, and who has a part in it."""
    info = report.topology.widths[change.width]
    layers = ", ".join(dict.fromkeys([*info.producers, *info.per_unit, *info.consumers]))
    size = (
        f"{change.before} → [bold]{change.after}[/] units" if change.before != change.after else f"{change.after} units"
    )
    return f"[bold]{_plain(info.name)}[/]  {size}{_what_happens(change)}  [dim]({_plain(layers)})[/]"


def _what_happens(change: WidthChange) -> str:
    copies = sorted((new, old) for old, group in change.copies.items() for new in group if new != old)
    if change.kind == "recycle":
        if change.fresh:
            return f": made fresh: {_few([str(unit) for unit in change.fresh])}"
        return f": replaced by copies: {_few([f'{new}←{old}' for new, old in copies])}"
    if copies:
        return f": split {_few([str(old) for old in change.copies])}"
    if change.dropped:
        return f": without {_few([str(unit) for unit in change.dropped])}"
    return ""


def _few(items: list[str], most: int = 12) -> str:
    return " ".join(items[:most]) + (f" ... ({len(items)})" if len(items) > most else "")


def _plain(text: str) -> str:
    """Names may hold brackets, which would be read as markup."""
    return text.replace("[", "\\[")


def _tensors(report: Report, console: Console) -> None:
    names = [name for name, _, _ in report.tensors[:MOST_TENSORS]]
    width = max(map(len, names), default=0)
    for name, before, after in report.tensors[:MOST_TENSORS]:
        text = f"{shape_text(before)} → {shape_text(after)}" if before != after else f"{shape_text(before)}, values"
        console.print(f"  {name:<{width}}  {text}", markup=False)
    if len(report.tensors) > MOST_TENSORS:
        console.print(f"  ... and {len(report.tensors) - MOST_TENSORS} more tensors (--json lists all)")


def _along(report: Report, console: Console) -> None:
    """State dicts that change with the model, and what their own proofs say."""
    for one in report.state.along:
        what, found = f"along with it: {_plain(one.sibling.label)} ({len(one.sibling.values)} tensors)", one.equivalence
        if found is None:
            console.print(what)
            continue
        said = "[green]equal[/]" if found.equal else "[yellow]drift[/]"
        folded = ", [green]folded back[/]" if one.folded is not None and one.folded.whole else ""
        console.print(f"{what}: {said}, outputs differ by {found.max_rel:.1e} of their size{folded}")


def _proof(report: Report, console: Console) -> None:
    found = report.equivalence
    if found is None:
        return
    data = "random" if found.origin == "random" else f"({found.origin})"
    each = "" if found.pieces is None else f" for each of {found.pieces} {'piece' if found.pieces == 1 else 'pieces'}"
    seen = f"{found.probes} {data} probes{each} in {found.dtype}"
    if found.pieces == 0:
        console.print("[green]equal[/]: nothing that the outputs are computed from changed")
    elif found.max_rel == 0.0:
        console.print(f"[green]equal[/]: outputs are identical on {seen}")
    elif found.equal:
        console.print(f"[green]equal[/]: outputs differ by {found.max_rel:.1e} of their size on {seen}")
    else:
        console.print(
            f"[yellow]drift[/]: outputs differ by {found.max_rel:.3g} of their size on {seen} (--allow-drift)"
        )
    if found.why and (found.pieces is not None or found.why.startswith("pieces")):
        console.print(f"compared {'in pieces' if found.pieces is not None else 'as a whole'}: {_plain(found.why)}")
    folded = report.folded
    if folded is not None and folded.whole:
        console.print(f"[green]folded back[/]: all {folded.exact} tensors come back bit for bit")
    if report.learnable is not None and report.learnable.good:
        console.print(f"[green]learnable[/]: all {report.learnable.units} units get gradients, no two alike")
