"""Runs the command line, and small networks to run it on."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from netgrow_cli import cli

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "sample_checkpoints"
SPECS = ROOT / "specs"

NOTES = ("assumed: ", "no layouts: ")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        """Standard output as exactly one JSON object, on one line."""
        assert self.raw.count(b"\n") == 1 and self.raw.endswith(b"\n"), self.out
        found = json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert isinstance(found, dict)
        return found

    @property
    def path(self) -> Path:
        """Standard output as exactly one path of a file that is there."""
        assert self.code == 0, self.err
        lines = self.out.splitlines()
        assert len(lines) == 1 and self.out.endswith("\n"), self.out
        assert Path(lines[0]).is_file()
        return Path(lines[0])

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong."""
        lines = [line for line in self.err.splitlines() if not line.startswith(NOTES)]
        assert len(lines) == 1, f"exactly one line was expected:\n{self.err}"
        line = lines[0]
        assert line.startswith("netgrow: "), line
        for word in ("Traceback", "a bug in netgrow", "NETGROW_DEBUG", "\x1b"):
            assert word not in line, line
        return line


Run = Callable[..., Result]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any, stdin: bytes = b"") -> Result:
    """Call the command line as the program does, with standard streams of its own."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["netgrow", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            cli.main()
    out.flush()
    code = left.value.code
    assert isinstance(code, int)
    return Result(code, out.buffer.getvalue(), err.getvalue())  # type: ignore[attr-defined]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file in a folder, hidden ones too, with its bytes; None for what is no readable file."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        readable = path.is_file() and os.access(path, os.R_OK)
        found[str(path.relative_to(folder))] = path.read_bytes() if readable else None
    return found


def program(*arguments: Any) -> list[str]:
    """The command line as another process."""
    return [sys.executable, "-m", "netgrow_cli", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """Without what would change colours or widths."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def in_process_of_its_own(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        program(*arguments), capture_output=True, env=environment(), timeout=600, check=False, **options
    )


# -- small networks --------------------------------------------------------------------------------

State = dict[str, torch.Tensor]


def state_of(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def chain(*sizes: int, names: Sequence[str] = ("fc1", "fc2", "fc3", "fc4"), seed: int = 0) -> State:
    """Linear layers, one after another; the last is called out."""
    layers = [*names[: len(sizes) - 2], "out"]
    shapes: dict[str, Sequence[int]] = {}
    for name, reads, makes in zip(layers, sizes[:-1], sizes[1:], strict=True):
        shapes[f"{name}.weight"] = (makes, reads)
        shapes[f"{name}.bias"] = (makes,)
    return state_of(shapes, seed)


def save(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


MLP_SPEC = """\
netgrow: 1
inputs:
  x: [batch, 5]
layers:
  fc1: {op: linear, from: x}
  act1: {op: relu, from: fc1}
  fc2: {op: linear, from: act1}
  act2: {op: relu, from: fc2}
  out: {op: linear, from: act2}
outputs: [out]
"""

# Two encoders joined into a core whose halves feed two heads; enc has a residual sum with core.
CORE_SPEC = """\
netgrow: 1
inputs:
  x: [batch, 4]
layers:
  enc: {op: linear, from: x}
  act_e: {op: relu, from: enc}
  side: {op: linear, from: x}
  act_s: {op: relu, from: side}
  core:
    op: linear
    from: {"0:20": act_e, "20:27": act_s}
  act_c: {op: relu, from: core}
  left: {op: linear, from: "act_c[0:12]"}
  right: {op: linear, from: "act_c[12:20]"}
outputs: [left, right]
"""


def core_state(seed: int = 0) -> State:
    shapes: dict[str, Sequence[int]] = {}
    for name, makes, reads in (("enc", 20, 4), ("side", 7, 4), ("core", 20, 27), ("left", 2, 12), ("right", 3, 8)):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (makes, reads), (makes,)
    return state_of(shapes, seed)
