"""A task in a process of its own: its answer, its errors, its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

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
    "ended by a mapped file": """
import mmap, tempfile
def task():
    with tempfile.TemporaryFile() as file:
        file.write(bytes(8192))
        file.flush()
        seen = mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_READ)
        file.truncate(0)
        return seen[5000]
with aside(ready, task, lambda: os.getpid(), wanted=True) as made:
    made.begin()
    assert made.apart and made.result() == me
""",
    "what the system refuses": """
def task(): raise OSError(19, "No such device")
with aside(ready, task, lambda: os.getpid(), wanted=True) as made:
    made.begin()
    assert made.apart and made.result() == me
""",
    "what is done aside is heard of": """
from netgrow_cli.jobs.aside import Relay
heard = []
relay = Relay(heard.append)
def task():
    for _ in range(5):
        relay.advance(7)
        time.sleep(0.15)
    assert not heard
    return 1
with aside(ready, task, wanted=True) as made:
    made.begin()
    assert made.result(relay.tell) == 1
relay.tell()
assert sum(heard) == 35 and len(heard) > 2, heard
""",
    "a long answer": """
with aside(ready, lambda: bytes(1 << 20), wanted=True) as made:
    made.begin()
    assert made.result() == bytes(1 << 20)
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


# The command line with every network as if it were large. It is said which process compared, and whether it has torch,
# and at the end whether the first one has.
LARGE = """
import os, sys
from netgrow_cli.jobs import aside, proving, written
from netgrow_cli.cli import main
from netgrow_cli.topology import rows
proving.WHOLE_BYTES = rows.LARGE = 0
if sys.argv.pop(1) == 'here': aside.can_go_aside = lambda: False
first, compared = os.getpid(), written.Written._compared
def tell(what): print('torch', what, 'torch' in sys.modules, file=sys.stderr, flush=True)
def telling(self, *given):
    found = compared(self, *given)
    tell('here' if os.getpid() == first else 'aside')
    return found
written.Written._compared = telling
try:
    main()
finally:
    if os.getpid() == first: tell('at the end')
"""


MLP = """
netgrow: 1
inputs: {x: [batch, 5]}
layers:
  up: {op: linear, from: x}
  act: {op: gelu, from: up}
  down: {op: linear, from: act}
  norm: {op: rms_norm, from: down}
outputs: [norm]
"""


def mlp(folder: Path) -> tuple[Path, Path]:
    """A checkpoint of it, and its spec."""
    random, spec = np.random.default_rng(0), folder / "mlp.yaml"
    shapes = {"up.weight": (7, 5), "up.bias": (7,), "down.weight": (4, 7), "norm.weight": (4,)}
    checkpoint = folder / "mlp.safetensors"
    save_file({name: random.standard_normal(shape) for name, shape in shapes.items()}, checkpoint)
    spec.write_text(MLP)
    return checkpoint, spec


def expanded(where: str, folder: Path, checkpoint: Path, spec: Path, layer: str) -> tuple[bytes, str, list[str]]:
    """The bytes that come out, what is said of the comparison, and who has torch at the end."""
    output = folder / f"{where}.safetensors"
    arguments = ["expand", checkpoint, "--spec", spec, "--layer", layer, "--add", "3", "--json", "-o", output]
    done = subprocess.run(
        [sys.executable, "-c", LARGE, where, *map(str, arguments)],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("torch ")]
    return output.read_bytes(), done.stdout.split('"equivalence": ')[1].split("}")[0], said


@pytest.mark.skipif(sys.platform != "linux", reason="only there")
def test_a_proof_aside_is_the_same(tmp_path: Path) -> None:
    """With and without a process of its own; convolutions take torch, which only one process then has."""
    of = SAMPLES / "digits_conv.safetensors", SPECS / "digits_conv.yaml", "down"
    *here, had = expanded("here", tmp_path, *of)
    *apart, have = expanded("aside", tmp_path, *of)
    assert here == apart and '"mode": "pieces"' in here[1]
    assert had == ["torch here True", "torch at the end True"]
    assert have == ["torch aside True", "torch at the end False"]


@pytest.mark.skipif(sys.platform != "linux", reason="only there")
def test_pieces_that_numpy_knows_need_no_torch(tmp_path: Path) -> None:
    checkpoint, spec = mlp(tmp_path)
    *_, said, have = expanded("aside", tmp_path, checkpoint, spec, "up")
    assert '"mode": "pieces"' in said and '"equal": true' in said
    assert have == ["torch aside False", "torch at the end False"]


# The same, with something that goes wrong between writing and folding back.
MEANWHILE = LARGE.replace(
    "try:\n    main()",
    """
from netgrow_cli.jobs import job
write = job._write
def spoiling(report, paths, *more):
    write(report, paths, *more)
    spoil(report.path, paths[0])
job._write = spoiling
try:
    main()""",
)

# A file system without maps: both proofs aside fail, and are made here.
UNMAPPED = """
def spoil(old, new): pass
from netgrow_cli.checkpoint import mapped
class Refusing:
    MAP_PRIVATE, PROT_READ, ALLOCATIONGRANULARITY = 2, 1, 4096
    def mmap(*_, **__): raise OSError(19, "No such device")
mapped.mmap = Refusing
"""

SPOILED = {
    "a byte that was to stay": (
        """
def spoil(old, new):
    with new.open('r+b') as file:
        place = file.seek(-3 * 5 * 8 - 1, 2)  # (before the three rows that are new)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
""",
        1,
        "folding back does not give",
    ),
    "an input that is shortened": (
        "def spoil(old, new): os.truncate(old, old.stat().st_size - 64)\n",
        2,
        "something else is changing",
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="only there")
@pytest.mark.parametrize("where", ["here", "aside"])
@pytest.mark.parametrize("how", SPOILED)
def test_what_is_spoiled_meanwhile_is_found(tmp_path: Path, how: str, where: str) -> None:
    script, code, said = SPOILED[how]
    checkpoint, spec = mlp(tmp_path)
    output = tmp_path / "new.safetensors"
    arguments = ["expand", checkpoint, "--spec", spec, "--layer", "up", "--add", "3", "-o", output]
    done = subprocess.run(
        [sys.executable, "-c", script + MEANWHILE, where, *map(str, arguments)],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not output.exists() and sorted(tmp_path.iterdir()) == sorted([checkpoint, spec])


@pytest.mark.skipif(sys.platform != "linux", reason="only there")
def test_a_file_system_without_maps(tmp_path: Path) -> None:
    checkpoint, spec = mlp(tmp_path)
    output = tmp_path / "new.safetensors"
    arguments = ["expand", checkpoint, "--spec", spec, "--layer", "up", "--add", "3", "--json", "-o", output]
    done = subprocess.run(
        [sys.executable, "-c", UNMAPPED + MEANWHILE, "aside", *map(str, arguments)],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and '"equal": true' in done.stdout, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("torch ")]
    assert said == ["torch here False", "torch at the end False"] and output.exists()
