"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .driver import CORE_SPEC, Run, call, chain, contents, core_state, save


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command line in this process."""
    return partial(call, monkeypatch)


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[..., str]:
    """Call a command that must fail: one line, the exit code, nothing on standard output, no file changed."""

    def fails(code: int, *arguments: Any, json_too: bool = True, stdin: bytes = b"") -> str:
        before = contents(tmp_path)
        lines = []
        for more in [(), ("--json",)] if json_too else [()]:
            result = run(*arguments, *more, stdin=stdin)
            assert result.code == code, f"exit code {result.code}: {result.err}"
            assert result.raw == b"", result.out
            lines.append(result.complaint)
            assert contents(tmp_path) == before
        return lines[0]

    return fails


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    """5 -> fc1: 6 -> fc2: 4 -> out: 3, as a plain state dict."""
    return save(tmp_path / "ckpt.pt", chain(5, 6, 4, 3))


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """A checkpoint with ranges, and its spec beside it."""
    (tmp_path / "core.pt.netgrow.yaml").write_text(CORE_SPEC)
    return save(tmp_path / "core.pt", core_state())
