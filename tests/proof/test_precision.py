"""What decides how torch's functions are computed happens before several threads call them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from netgrow_cli.topology.library import _SETTLED, torch_at_full_precision

SAMPLES = Path(__file__).resolve().parents[2] / "sample_checkpoints"

# (In a process of its own: in this one somebody has computed already.)
SCRIPT = """
import sys
import torch
called = []
for name in sys.argv[1].split():
    def counted(*given, name=name, plain=getattr(torch, name), **more):
        called.append((name, given[0].numel()))
        return plain(*given, **more)
    setattr(torch, name, counted)
sys.argv = ["netgrow", *sys.argv[2:]]
from netgrow_cli.cli import main
try:
    main()
except SystemExit as ended:
    assert ended.code == 0, ended.code
first = {}
for name, count in called:
    first.setdefault(name, count)
print("first calls", sorted(set(first.values())), len(first))
"""


@pytest.mark.parametrize("more", [[], ["--model", "sample_checkpoints.models:DigitsMLP"]], ids=["spec", "model"])
def test_the_first_call_is_with_one_number(more: list[str]) -> None:
    words = ["check", str(SAMPLES / "digits_mlp.pt"), "--spec", "specs/digits_mlp.yaml", "--probes", "4", *more]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, " ".join(_SETTLED), *words],
        cwd=SAMPLES.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1] == f"first calls [1] {len(_SETTLED)}", done.stdout + done.stderr


def test_it_is_done_once() -> None:
    assert torch_at_full_precision() is torch_at_full_precision() is torch
