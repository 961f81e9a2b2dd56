"""One command as a process of its own: how long it takes, and how much anonymous memory it holds at most."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

EVERY = 0.01
"""Seconds between two looks at a process's memory."""


@dataclasses.dataclass(frozen=True)
class Run:
    """seconds: on the clock. anonymous: the most bytes that its processes held besides files (Pss_Anon: pages that
    several of them share are counted once)."""

    seconds: float
    anonymous: int
    code: int
    said: str


def run(command: Sequence[str], cwd: Path, *, watch: bool = True) -> Run:
    """Run a command to its end. watch: look at its memory meanwhile, which takes a part of a core."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    most = [0]
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, most, done))
    if watch:
        watcher.start()
    _, said = process.communicate()
    seconds = time.perf_counter() - began
    done.set()
    if watch:
        watcher.join()
    return Run(seconds, most[0], process.returncode, said.decode(errors="replace"))


def environment() -> dict[str, str]:
    """As users have it: compiled modules are kept, nothing is fetched."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _watch(pid: int, most: list[int], done: threading.Event) -> None:
    while not done.is_set():
        most[0] = max(most[0], sum(_anonymous(one) for one in _tree(pid)))
        done.wait(EVERY)


def _tree(pid: int) -> list[int]:
    """A process and all that it started."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting.extend(map(int, (task / "children").read_text().split()))
        except OSError:  # it has ended meanwhile
            continue
    return found


def _anonymous(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def drop(path: Path) -> None:
    """Remove an output and let everything be written out, so that no run pays for another's pages."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    os.sync()


def warm(folder: Path) -> None:
    """Read all files of a folder once, so that they lie in memory."""
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
