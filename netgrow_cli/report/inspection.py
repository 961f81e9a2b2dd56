"""`inspect`: tensors with their layouts, and widths. No torch, no rich."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from netgrow_cli.report.console import few

if TYPE_CHECKING:
    from netgrow_cli.checkpoint import Checkpoint
    from netgrow_cli.topology.solve import Topology, WidthInfo


def inspection_json(checkpoint: Checkpoint, topology: Topology | None, origin: str) -> dict[str, Any]:
    """The contract's JSON object."""
    tensors = [
        {
            "name": info.name,
            "shape": list(info.shape),
            "dtype": info.dtype,
            "layout": topology.tensor_text(info.name) if topology and info.name in topology.tensors else None,
        }
        for info in checkpoint.tensors.values()
    ]
    widths = [_width_json(info) for info in listed_widths(topology)]
    return {"tensors": tensors, "widths": widths, "spec": origin or None}


def listed_widths(topology: Topology | None) -> list[WidthInfo]:
    """Widths that some parameter has."""
    if topology is None:
        return []
    return [info for info in topology.widths.values() if info.producers or info.consumers or info.per_unit]


def _width_json(info: WidthInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "size": info.size,
        "producers": list(info.producers),
        "consumers": list(info.consumers),
        "per_unit": list(info.per_unit),
        "frozen": info.frozen,
        "effects": [{"kind": effect.kind, "layer": effect.node} for effect in info.effects],
    }


def inspection_text(checkpoint: Checkpoint, topology: Topology | None, origin: str) -> str:
    """Two tables for people: tensors, widths."""
    rows = [("tensor", "shape", "dtype", "layout")]
    for info in checkpoint.tensors.values():
        layout = topology.tensor_text(info.name) if topology and info.name in topology.tensors else "-"
        tied = f"  (tied to {info.tied_to})" if info.tied_to else ""
        rows.append((info.name, str(list(info.shape)), info.dtype, layout + tied))
    lines = _table(rows)
    infos = listed_widths(topology)
    if infos:
        rows5 = [("width", "size", "produced by", "read by", "per unit in", "")]
        rows5 += [_width_row(info) for info in infos]
        lines += ["", *_table(rows5)]
        free = sum(info.frozen is None for info in infos)
        lines += ["", f"{free} of {len(infos)} widths may change; spec: {origin}"]
    return "\n".join(lines)


def _width_row(info: WidthInfo) -> tuple[str, str, str, str, str, str]:
    notes = [f"{effect.kind} in {effect.node}" for effect in info.effects]
    if info.frozen is not None:
        notes.insert(0, f"frozen: {info.frozen}")
    return (
        info.name,
        str(info.size),
        few(info.producers),
        few(info.consumers),
        few(info.per_unit),
        "; ".join(notes),
    )


def _table(rows: list[Any]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        lines[0] = f"\033[1m{lines[0]}\033[0m"
    return lines
