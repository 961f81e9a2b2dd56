"""A task in a process of its own: its answer, its errors, its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .driver import SAMPLES, SPECS, environment

ROOT = Path(__file__).resolve().parents[2]

# (A process without torch and without threads, as the command line's is.)
HEAD = """
import os, sys, time
from netgrow_cli.errors import NotEquivalent
from netgrow_cli.jobs.aside import aside, can_go_aside
assert can_go_aside()
me = os.getpid()
def ready(): pass
"""

CASES = {
    "an answer": """
with aside(ready, lambda: (os.getpid(), 7), wanted=True) as task:
    task.begin()
    pid, value = task.result()
assert pid != me and value == 7
""",
    "an error": """
def fails(): raise NotEquivalent("they differ")
try:
    with aside(ready, fails, wanted=True) as task:
        task.begin()
        task.result()
except NotEquivalent as error:
    assert str(error) == "they differ"
else:
    raise AssertionError
""",
    "not wanted": """
with aside(ready, os.getpid, wanted=False) as task:
    task.begin()
    assert task.result() == me
""",
    "killed": """
def task():
    if os.getpid() != me: os.kill(os.getpid(), 9)
    return 3
with aside(ready, task, wanted=True) as made:
    made.begin()
    assert made.result() == 3
""",
    "never begun": """
def ready(): time.sleep(60)
began = time.monotonic()
try:
    with aside(ready, os.getpid, wanted=True) as made:
        raise KeyError("something else went wrong")
except KeyError:
    pass
assert time.monotonic() - began < 30
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="only there")
@pytest.mark.parametrize("name", CASES)
def test_aside(name: str) -> None:
    tail = "\ntry:\n    os.waitpid(-1, 0)\nexcept ChildProcessError:\n    print('nothing left')\n"
    done = subprocess.run(
        [sys.executable, "-c", HEAD + CASES[name] + tail],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout == "nothing left\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only there")
def test_a_proof_aside_is_the_same(tmp_path: Path) -> None:
    """The command line with every network as if it were large, with and without a process of its own."""
    code = (
        "import json, sys\nfrom netgrow_cli.jobs import aside, proving\nfrom netgrow_cli.cli import main\n"
        "proving.WHOLE_BYTES = 0\n"
        "if sys.argv.pop(1) == 'here': aside.can_go_aside = lambda: False\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    made = {}
    for where in ("here", "aside"):
        arguments = ["expand", SAMPLES / "digits_conv.safetensors", "--spec", SPECS / "digits_conv.yaml"]
        arguments += ["--layer", "down", "--add", "3", "--json", "-o", tmp_path / f"{where}.safetensors"]
        made[where] = subprocess.run(
            [sys.executable, "-c", code, where, *map(str, arguments)],
            env=environment(PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
    assert made["here"].stderr.splitlines()[-1] == "True" and made["aside"].stderr.splitlines()[-1] == "False"
    assert (tmp_path / "here.safetensors").read_bytes() == (tmp_path / "aside.safetensors").read_bytes()
    here, apart = (result.stdout.split('"equivalence": ')[1].split("}")[0] for result in made.values())
    assert here == apart and '"mode": "pieces"' in here
