"""A bar on standard error for long work: bytes, rate and time left. rich is imported when it is shown."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from netgrow_cli.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

AFTER = 0.5
"""Seconds of work before there is a bar."""

AT_LEAST = 0.3
"""Seconds that a stage must still take then, as it seems: no bar flashes up at the end."""

EVERY = 0.05
"""Seconds between two looks at the figures."""


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress]:
    """Progress as a bar on standard error; silent where that is no terminal. The bar is gone afterwards."""
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield SILENT
        return
    bar = Bar(sys.stderr)
    try:
        yield bar
    finally:
        bar.close()


class Bar:
    """One line for the stage that is under way, from the moment on that the work turns out to be long."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._name = ""
        self._total: int | None = None
        self._done = 0
        self._stage_began = self._looked = self._began
        self._shown: RichProgress | None = None
        self._task: TaskID | None = None
        self._closed = False

    def stage(self, name: str, total: int | None) -> None:
        """The next stage begins, in place of the one before."""
        with self._lock:
            self._name, self._total, self._done = name, total, 0
            self._stage_began = self._looked = time.monotonic()
            if self._shown is not None and self._task is not None:
                self._shown.remove_task(self._task)
                self._task = self._shown.add_task(name, total=total)

    def advance(self, count: int) -> None:
        """So many bytes more are done."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if self._closed or now - self._looked < EVERY:
                return
            self._looked = now
            if self._shown is None and self._is_long(now):
                self._show()
            if self._shown is not None and self._task is not None:
                self._shown.update(self._task, completed=self._done)

    def close(self) -> None:
        """Take the bar away; the terminal is as it was."""
        with self._lock:
            self._closed = True
            shown, self._shown = self._shown, None
        if shown is not None:
            shown.stop()

    def _is_long(self, now: float) -> bool:
        if now - self._began < AFTER:
            return False
        if not self._total or not self._done:
            return True
        left = (now - self._stage_began) * (self._total - self._done) / self._done
        return left >= AT_LEAST

    def _show(self) -> None:
        self._shown = _rich_bar(self._stream)
        self._shown.start()
        self._task = self._shown.add_task(self._name, total=self._total)


def _rich_bar(stream: Any) -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            """Nobody looks at the bar any more; the work goes on."""
            self.quiet = True

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Quiet(file=stream),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
