"""The bar: on a terminal, for long work, and the terminal as it was afterwards."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import netgrow_cli
from netgrow_cli.progress import SILENT
from netgrow_cli.report import progress
from netgrow_cli.report.progress import shown_progress

from .driver import chain, environment, save

SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"


class Terminal(io.StringIO):
    """What is shown on a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


def standard_error(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal as standard error. (Not a fixture: pytest puts its own streams back before a test.)"""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All work is long."""
    for name in ("AFTER", "AT_LEAST", "EVERY"):
        monkeypatch.setattr(progress, name, 0.0)


@pytest.mark.usefixtures("at_once")
def test_stage_bytes_and_rate_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, out = standard_error(monkeypatch), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    with shown_progress() as told:
        told.stage("writing", 4_000_000)
        for _ in range(4):
            told.advance(1_000_000)
            time.sleep(0.15)  # (rich looks ten times a second)
        told.stage("folding back", 9_000_000)
        told.advance(3_000_000)
        time.sleep(0.15)
    for part in ("writing", "4.0/4.0 MB", "folding back", "3.0/9.0 MB", "/s"):
        assert part in terminal.text, part
    assert terminal.getvalue().rfind(SHOW) > terminal.getvalue().rfind(HIDE) >= 0
    assert out.getvalue() == ""


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = standard_error(monkeypatch)
    with shown_progress() as told:
        told.stage("writing", 10)
        for _ in range(10):
            told.advance(1)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("done", "shown"), [(990, False), (100, True)])
def test_no_bar_flashes_up_at_the_end(monkeypatch: pytest.MonkeyPatch, done: int, shown: bool) -> None:
    terminal = standard_error(monkeypatch)
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    bar = progress.Bar(terminal)
    bar.stage("writing", 1000)
    now = 0.6
    bar.advance(done)
    bar.close()
    assert bool(terminal.getvalue()) == shown


@pytest.mark.usefixtures("at_once")
def test_a_stage_of_unknown_length(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = standard_error(monkeypatch)
    with shown_progress() as told:
        told.stage("proving", None)
        told.advance(5_000_000)
        time.sleep(0.15)
    assert "proving" in terminal.text and "5.0/? MB" in terminal.text


@pytest.mark.usefixtures("at_once")
def test_threads_advance_together(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = standard_error(monkeypatch)
    count, each = 8, 500
    with shown_progress() as told:
        told.stage("writing", 1000 * count * each)
        threads = [threading.Thread(target=lambda: [told.advance(1000) for _ in range(each)]) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told.advance(0)
        time.sleep(0.15)
    assert "4.0/4.0 MB" in terminal.text


@pytest.mark.parametrize("kind", ["pipe", "dumb", "none"])
@pytest.mark.usefixtures("at_once")
def test_silent_without_a_terminal(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    stream = {"pipe": io.StringIO(), "dumb": Terminal(), "none": None}[kind]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    with shown_progress() as told:
        assert told is SILENT
        told.stage("writing", 10)
        told.advance(5)
    assert stream is None or stream.getvalue() == ""


def test_neither_rich_nor_its_terminal_without_need() -> None:
    code = (
        "import sys; from netgrow_cli.report.progress import Bar\n"
        "bar = Bar(sys.stderr); bar.stage('writing', 100); bar.advance(50); bar.close()\n"
        "assert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


LONG = """
import sys, time
from netgrow_cli.report.progress import shown_progress
try:
    with shown_progress() as told:
        told.stage("writing", 100_000_000)
        for _ in range(40_000):  # (until it is interrupted)
            told.advance(2_500)
            time.sleep(0.02)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupt_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    script = tmp_path / "long.py"
    script.write_text(LONG)
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=child, env=environment(TERM="xterm", PYTHONPATH=root)
    )
    os.close(child)
    seen = b""
    while b"MB" not in seen:
        seen += os.read(parent, 65536)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    while True:
        try:
            more = os.read(parent, 65536)
        except OSError:  # the other end is closed and all has been read
            break
        if not more:
            break
        seen += more
    os.close(parent)
    assert process.returncode == 130
    assert out == b""
    text = seen.decode()
    assert "writing" in text and text.rfind(SHOW) > text.rfind(HIDE) >= 0
    assert text.endswith("\x1b[2K"), repr(text[-40:])  # the line is wiped


@pytest.mark.parametrize("name", ["ckpt.pt", "ckpt.safetensors"])
def test_a_change_tells_of_all_its_bytes(tmp_path: Path, name: str) -> None:
    told: list[list[Any]] = []

    class Told:
        def stage(self, name: str, total: int | None) -> None:
            told.append([name, total, 0])

        def advance(self, count: int) -> None:
            told[-1][2] += count

    path = save(tmp_path / name, chain(5, 6, 4, 3))
    report = netgrow_cli.expand(path, layer="fc1", add=2, progress=Told())
    read = load_file if path.suffix == ".safetensors" else torch.load
    size = sum(tensor.nbytes for tensor in read(report.output).values())
    assert told[:2] == [["writing", size, size], ["folding back", size, size]]
