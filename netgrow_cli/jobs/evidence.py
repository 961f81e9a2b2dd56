"""What the choice of units stands on: probes, data, bounds. Dead on random probes is not dead on data."""

from __future__ import annotations

import dataclasses
from typing import Any

from netgrow_cli.proof.probes import Probes


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One thing that a choice stands on.

    kind: "probes" (random ones), "data" (the user's rows), "bounds" (a proof for every input), and what scores stand on
        ("weights", "recorded", "optimizer").
    rows: how many rows were looked at, where there are any. origin: "random", the name of a file, or for bounds the
        inputs that the proof is for. random: whether it is drawn and not the user's.
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
        """For people, behind "dead": `on 8192 random probes`, `on the 512 rows of obs.npz`, `for every input`."""
        if self.kind == "bounds":
            return f"for {self.origin or 'every input'}"
        if self.rows is None:
            return f"by {self.origin or self.kind}"
        return f"on {self.rows} random probes" if self.random else f"on the {self.rows} rows of {self.origin}"

    def as_json(self) -> dict[str, Any]:
        """One object of the `evidence` of the command line's JSON."""
        return dataclasses.asdict(self)
