"""The quick reading of a command line says what typer would, or leaves the line to it."""

from __future__ import annotations

import functools
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netgrow_cli.cli import COMMANDS, _command
from netgrow_cli.commands.declare import read_quickly
from netgrow_cli.typer_app import run_app

from .driver import SAMPLES, SPECS, Run, environment

PLAIN = [
    "diff a.pt b.pt",
    "diff a.pt - --values --json --key model",
    "diff --json a.pt b.pt",
    "convert a.pt -o b.safetensors",
    "convert --output=b.safetensors a.pt --force",
    "inspect a.pt",
    "inspect a.pt --spec s.yaml --json",
    "inspect --spec=dir/s.yaml --prefix module. a.pt",
    "check a.pt --spec s.yaml --probes 12 --dtype float32 --tolerance 1e-5 --model m:f",
    "infer a.pt -o - --activation relu",
    "expand a.pt --layer fc1 --add 64",
    "expand a.pt --layer 'model.layers.*.mlp.up_proj' --layer fc2 --times 1.5 --no-verify -o out",
    "expand - --width fc1 --to 7 --seed 3 --dry-run --json --allow-drift 0.5 --init kaiming",
    "split a.pt --layer fc1 --units 3,7 --noise 0.1 --ways 3 --by incoming",
    "prune a.pt --layer fc1 --dead --fraction 0.25 --lowest 3 --below 2",
    "recycle a.pt --layer fc1 --probe-data x.npy --device cpu",
    "apply r.yaml a.pt",
    "apply r.yaml a.pt b.pt c.pt --force",
    "scores a.pt --by weight --csv",
    "graph a.pt -o g.svg",
    "trace m:f -o s.yaml --input 'float32[2,9]' --input 'x=int64[2]:90'",
    "verify a.pt b.pt --tolerance 0",
]

NOT_PLAIN = [
    "inspect",
    "inspect --help",
    "inspect a.pt -h",
    "inspect a.pt b.pt",
    "inspect a.pt --spec",
    "inspect a.pt --sp s.yaml",
    "inspect -- a.pt",
    "inspect a.pt --spec a --spec b",
    "inspect a.pt --json=yes",
    "inspect a.pt --nothing",
    "diff a.pt",
    "convert a.pt",
    "convert a.pt -ob.pt",
    "expand a.pt --layer fc1 --add x",
    "expand a.pt --layer fc1 --add 1.5",
    "expand a.pt --layer fc1 --add -3",
    "expand a.pt --layer fc1 --add ٣",
    "expand a.pt --layer fc1 --times inf",
    "expand a.pt --layer --add 3",
    "expand a.pt --probes 0",
    "apply r.yaml",
]


def words(line: str) -> list[str]:
    return [word.strip("'") for word in line.split()]


def read_by_typer(monkeypatch: pytest.MonkeyPatch, line: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that typer calls, and with what."""
    called: list[tuple[str, dict[str, Any]]] = []

    def recording(name: str) -> Callable[..., int]:
        @functools.wraps(_command(name))
        def record(**arguments: Any) -> int:
            called.append((name, arguments))
            return 0

        return record

    monkeypatch.setattr(sys, "argv", ["netgrow", *line])
    run_app({name: recording(name) for name in COMMANDS})
    assert len(called) == 1
    return called[0]


@pytest.mark.parametrize("line", PLAIN)
def test_the_quick_reading_is_that_of_typer(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    name, arguments = read_by_typer(monkeypatch, words(line))
    command = _command(name)
    quick = read_quickly(command, words(line)[1:])
    assert quick is not None
    defaults = {item.name: item.default for item in inspect.signature(command).parameters.values()}
    assert {**defaults, **quick} == arguments
    assert {key: type(value) for key, value in quick.items()} == {key: type(arguments[key]) for key in quick}


@pytest.mark.parametrize("line", NOT_PLAIN)
def test_what_is_wrong_or_unusual_is_left_to_typer(line: str) -> None:
    name, *rest = words(line)
    assert read_quickly(_command(name), rest) is None


def test_an_empty_word_is_left_to_typer() -> None:
    assert read_quickly(_command("inspect"), [""]) is None
    assert read_quickly(_command("inspect"), ["a.pt", "--spec", ""]) is None


def test_what_is_wrong_is_said_once(run: Run) -> None:
    for line in ("inspect", "inspect a.pt --nothing", "expand a.pt --layer fc1 --add x", "nothing", "--nothing"):
        result = run(*words(line))
        assert result.code == 2 and result.raw == b""
        assert result.complaint.endswith("(netgrow --help)")
    assert run("--version").out.startswith("netgrow ")
    assert all(name in run("--help").out for name in COMMANDS)


@pytest.mark.parametrize("command", ["inspect", "diff"])
def test_looking_imports_nothing_heavy(command: str) -> None:
    ckpt, spec = SAMPLES / "digits_conv.safetensors", SPECS / "digits_conv.yaml"
    arguments = [command, ckpt, *(["--spec", spec] if command == "inspect" else [ckpt])]
    code = (
        "import json, sys; from netgrow_cli.cli import main\n"
        f"sys.argv = ['netgrow', *{[str(item) for item in arguments]!r}]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "heavy = {'torch', 'numpy', 'typer', 'pydantic', 'rich', 'safetensors', 'importlib.metadata', 'tempfile'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))), file=sys.stderr)"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(PYTHONPATH=root)
    )
    assert json.loads(done.stderr.splitlines()[-1]) == []
