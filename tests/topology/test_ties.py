"""Sizes that follow one another: as far as whole numbers allow, and never without end."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from netgrow_cli.surgery.select import keeping_ties
from netgrow_cli.topology.layout import Fixed, Layout, Width, concat


@dataclasses.dataclass(frozen=True)
class Tied:
    pieces: tuple[Layout, ...]
    strict: bool
    why: str = "of a test"


def topology(ties: list[Tied], *widths: Width) -> Any:
    infos = {one.id: SimpleNamespace(size=one.size, frozen=None, effects=(), width=one) for one in widths}
    return SimpleNamespace(ties=tuple(ties), widths=infos)


def test_what_lags_behind_follows() -> None:
    whole, half = Width(1, 4), Width(2, 2)
    twice = Tied((whole, concat([half, half])), strict=True)
    assert keeping_ties(topology([twice], whole, half), {1: 6}) == {1: 6, 2: 3}
    assert keeping_ties(topology([twice], whole, half), {2: 1}) == {2: 1, 1: 2}


def test_ties_that_drive_each_other_up_are_given_up() -> None:
    """Twice the one, and the one with two more: equal at 4 and 2, and at no other sizes."""
    whole, half = Width(1, 4), Width(2, 2)
    twice = (whole, concat([half, half]))
    more = (whole, concat([half, Fixed(2, "constants")]))
    for strict in (True, False):
        both = topology([Tied(twice, True), Tied(more, strict)], whole, half)
        found = keeping_ties(both, {1: 2}, strict=False)
        assert max(found.values()) <= 64
        if not strict:
            assert found == {1: 2, 2: 1}  # what operations need is kept; the other number is reported
