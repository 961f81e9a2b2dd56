"""How far long work is, told to whoever wants to know. The work knows no terminal: `report/progress.py` has the bar."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears of work that goes in stages, one after another. `advance` may be called from any thread."""

    def stage(self, name: str, total: int | None) -> None:
        """The next stage begins: `writing`, so many bytes; None where that is not known."""

    def advance(self, count: int) -> None:
        """So many bytes more of the stage are done."""


class _Silent:
    def stage(self, name: str, total: int | None) -> None:
        pass

    def advance(self, count: int) -> None:
        pass


SILENT: Progress = _Silent()
