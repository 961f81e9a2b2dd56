"""Fixtures of the tests of folders; the command line is run as its own tests do."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.driver import MLP_SPEC, Run, call, chain


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command line in this process."""
    return partial(call, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """5 -> fc1: 6 -> fc2: 4 -> out: 3 in two shards, with a spec and other files."""
    made = tmp_path / "net-1.5"
    (made / "sub").mkdir(parents=True)
    state = chain(5, 6, 4, 3)
    with torch.no_grad():  # a dead unit
        state["fc1.weight"][2], state["fc1.bias"][2] = 0.0, -1.0
    weight_map = {}
    for number, names in enumerate(
        (("fc1.weight", "fc1.bias", "out.bias"), ("fc2.weight", "fc2.bias", "out.weight")), 1
    ):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in names}, made / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (made / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (made / "netgrow.yaml").write_text(MLP_SPEC)
    (made / "config.json").write_text('{"model_type": "mine"}')
    (made / "sub" / "vocab.txt").write_text("a\nb\n")
    return made
