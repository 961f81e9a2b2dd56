"""What the choice of units stands on: probes, data, bounds. Dead on random probes is not dead on data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from netgrow_cli.frozen import frozen
from netgrow_cli.proof.probes import Probes


@frozen
class Evidence:
    """One thing that a choice stands on.

    kind: "probes" (random ones), "data" (the user's rows), "bounds" (a proof for every input), and what scores stand on
        besides ("weights", "optimizer", "recorded", "file").
    rows: how many rows, or training steps, were looked at, where there are any. origin: "random", the name of a file,
        or for bounds the inputs that the proof is for. random: whether it is drawn and not the user's.
    """

    kind: str
    rows: int | None = None
    origin: str | None = None
    random: bool = False

    @classmethod
    def of_probes(cls, probes: Probes) -> Evidence:
        """What was seen on probes."""
        return cls("probes" if probes.random else "data", probes.rows, probes.origin, probes.random)

    def text(self) -> str:
        """For people, behind what was found: `on 8192 random probes`, `on the 512 rows of a.npz`, `for all inputs`."""
        return _TEXTS[self.kind](self)

    def as_json(self) -> dict[str, Any]:
        """One object of the `evidence` of the command line's JSON."""
        return dataclasses.asdict(self)


_TEXTS: Mapping[str, Callable[[Evidence], str]] = {
    "probes": lambda one: f"on {one.rows} random probes",
    "data": lambda one: f"on the {one.rows} rows of {one.origin}",
    "bounds": lambda one: f"for {one.origin or 'every input'}",
    "weights": lambda one: "of the checkpoint's weights",
    "optimizer": lambda one: f"from the state of {one.origin} in the checkpoint",
    "recorded": lambda one: f"recorded over {one.rows} training steps ({one.origin})",
    "file": lambda one: f"as stated in {one.origin}",
}
