"""What a change of a large checkpoint costs, against copying it and against tools that only load and save it.

    python -m benchmarks.streaming [--gigabytes 3] [--sizes 1,3,8] [--rounds 5] [--peers --peer-python PYTHON]
    python -m benchmarks.streaming --quick      # a small one, to see that all of it runs; writes no results

Makes a Llama-shaped checkpoint with random weights in shards of 1 GB (a third of the size where that is less), and
runs all commands in turn, round after round, so that a busy machine slows all of them alike. The input lies in memory
(it is read once before); an output is removed and everything written out (sync) before the next command starts, which
is not timed, so that none pays for another's pages. Medians; ratios are those of runs of the same round.
Results go to `streaming.jsonl` beside this file, one line a command, and `docs/streaming.md` is made from them.
Room needed: four times the size; twice the largest of --sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.llama import LLAMA_70B, Llama, write_random, write_sparse
from benchmarks.measure import Run, drop, run, warm
from benchmarks.streaming_table import write_page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_suffix(".jsonl")
PAGE = ROOT / "docs" / "streaming.md"
GIGABYTE = 10**9
LAYER = "model.layers.*.mlp.up_proj"
NETGROW = [sys.executable, "-m", "netgrow_cli"]
TRANSFORMERS = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model.save_pretrained(sys.argv[2], max_shard_size=sys.argv[3])
"""
MERGEKIT = "merge_method: passthrough\nmodels:\n  - model: {folder}\ndtype: bfloat16\n"

Argv = Callable[[Path], Sequence[str]]
"""A command, given where its output goes."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A thing to measure. allowed: exit codes that are an answer."""

    name: str
    argv: Argv
    allowed: tuple[int, ...] = (0,)


def expand(folder: Path, add: int, *more: str) -> Argv:
    """`netgrow expand` of every MLP."""
    return lambda out: [*NETGROW, "expand", str(folder), "--layer", LAYER, "--add", str(add), "-o", str(out), *more]


def changes(folder: Path, add: int) -> list[Command]:
    """Copying the folder, and changing it with and without the proof."""
    return [
        Command("cp -r", lambda out: ["cp", "-r", str(folder), str(out)]),
        Command("netgrow expand --no-verify", expand(folder, add, "--no-verify")),
        Command("netgrow expand", expand(folder, add)),
    ]


def looks(folder: Path, other: Path, sparse: Path, sparser: Path) -> list[Command]:
    """Commands that look; at the folder, and at the shapes of a 70B model without data."""

    def netgrow(*words: str | Path) -> Argv:
        return lambda out: [*NETGROW, *map(str, words)]

    return [
        Command("netgrow inspect", netgrow("inspect", folder)),
        Command("netgrow diff", netgrow("diff", folder, other), (0, 1)),
        Command("netgrow inspect (70B)", netgrow("inspect", sparse)),
        Command("netgrow diff (70B)", netgrow("diff", sparse, sparser), (0, 1)),
        Command('python -c "import torch"', lambda out: [sys.executable, "-c", "import torch"]),
    ]


def peers(folder: Path, python: str, shard: int, work: Path) -> list[Command]:
    """Tools that load the checkpoint and save it unchanged, as far as they are installed."""
    found = []
    if _imports(python, "transformers"):
        argv = [python, "-c", TRANSFORMERS, str(folder)]
        found.append(Command("transformers load and save", lambda out: [*argv, str(out), f"{shard // 10**6}MB"]))
    mergekit = Path(python).with_name("mergekit-yaml")
    if mergekit.is_file():
        config = work / "passthrough.yaml"
        config.write_text(MERGEKIT.format(folder=folder))
        # (its shards are counted in numbers, two bytes each)
        words = ["--no-copy-tokenizer", "--out-shard-size", str(shard // 2)]
        found.append(Command("mergekit passthrough", lambda out: [str(mergekit), str(config), str(out), *words]))
    for name in ("transformers", "mergekit"):
        if not any(command.name.startswith(name) for command in found):
            print(f"{name} is not installed for {python}: left out", file=sys.stderr)
    return found


def _imports(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def measured(commands: Sequence[Command], rounds: int, work: Path, source: Path) -> dict[str, list[Run]]:
    """All commands in turn, after one round that fills the caches and in which memory is looked at, which takes time of
    its own; a command that fails is said to and left out."""
    memory: dict[str, int] = {}
    runs: dict[str, list[Run]] = {command.name: [] for command in commands}
    failed: set[str] = set()
    for number in range(rounds + 1):
        warm(source)
        for command in commands:
            if command.name in failed:
                continue
            out = work / "out"
            drop(out)
            found = run(command.argv(out), ROOT, watch=number == 0)
            memory.setdefault(command.name, found.anonymous)
            if found.code not in command.allowed:
                print(f"{command.name} failed ({found.code}):\n{found.said[-1500:]}", file=sys.stderr)
                failed.add(command.name)
            elif number:
                runs[command.name].append(dataclasses.replace(found, anonymous=memory[command.name]))
                megabytes = memory[command.name] / 1e6
                print(f"  {command.name}: {found.seconds:.2f} s, {megabytes:.0f} MB", file=sys.stderr)
        drop(work / "out")
    return {name: found for name, found in runs.items() if name not in failed}


def lines(runs: dict[str, list[Run]], model: Llama, **more: Any) -> list[dict[str, Any]]:
    """One result a command. ratio: to `cp -r` of the same round, the median of the rounds."""
    copies = runs.get("cp -r", [])
    found = []
    for name, each in runs.items():
        ratios = [one.seconds / copy.seconds for one, copy in zip(each, copies, strict=False)]
        found.append(
            {
                "command": name,
                "bytes": model.bytes,
                "layers": model.layers,
                "rounds": len(each),
                "seconds": round(statistics.median(one.seconds for one in each), 3),
                "ratio": round(statistics.median(ratios), 3) if ratios else None,
                "anonymous": round(statistics.median(one.anonymous for one in each)),
                "all_seconds": [round(one.seconds, 3) for one in each],
                **more,
            }
        )
    return found


def machine(work: Path) -> dict[str, Any]:
    """What the figures were taken on."""
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True, check=False)
    return {
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(int(total.split()[1]) * 1024 / 1e9),
            "file_system": kind.stdout.strip(),
            "python": platform.python_version(),
            "dirty_ratio": Path("/proc/sys/vm/dirty_ratio").read_text().strip(),
        }
    }


def at_one_size(size: int, add: int, rounds: int, work: Path, python: str | None) -> list[dict[str, Any]]:
    """Everything at one size: changes beside peers, then looks."""
    model, shard = Llama.of_bytes(size), min(GIGABYTE, size // 3)
    folder, other = work / "model", work / "edited"
    write_random(model, folder, shard)
    commands = changes(folder, add) + (peers(folder, python, shard, work) if python else [])
    found = lines(measured(commands, rounds, work, folder), model, part="changes")
    done = run(expand(folder, add, "--no-verify")(other), ROOT)
    if done.code:
        print(f"no edited folder to look at:\n{done.said[-1500:]}", file=sys.stderr)
        other = folder
    sparse = write_sparse(LLAMA_70B, work / "70b")
    sparser = write_sparse(
        dataclasses.replace(LLAMA_70B, intermediate=LLAMA_70B.intermediate + add), work / "70b-edited"
    )
    found += lines(measured(looks(folder, other, sparse, sparser), rounds, work, sparse), model, part="looks")
    for path in (folder, other, sparse, sparser):
        drop(path)
    return found


def over_sizes(sizes: Sequence[int], add: int, rounds: int, work: Path) -> list[dict[str, Any]]:
    """Time and memory of the changes as the checkpoint grows."""
    found: list[dict[str, Any]] = []
    for size in sizes:
        model, folder = Llama.of_bytes(size), work / "model"
        print(f"{size / 1e9:g} GB", file=sys.stderr)
        write_random(model, folder, min(GIGABYTE, size // 3))
        found += lines(measured(changes(folder, add), rounds, work, folder), model, part="sizes")
        drop(folder)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="the size of the checkpoint (10^9 bytes)")
    parser.add_argument("--sizes", default="1,3,8", help="the sizes over which time and memory are followed; or none")
    parser.add_argument("--rounds", type=int, default=5, help="how often each command is run")
    parser.add_argument("--add", type=int, default=512, help="how much wider every MLP becomes")
    parser.add_argument("--peers", action="store_true", help="mergekit and transformers too, where installed")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has them")
    parser.add_argument("--work", type=Path, help="where files are made; a temporary folder by default")
    parser.add_argument("--quick", action="store_true", help="a small checkpoint, two rounds, no results written")
    given = parser.parse_args()
    size, rounds = int(given.gigabytes * GIGABYTE), given.rounds
    sizes = [int(float(item) * GIGABYTE) for item in given.sizes.split(",") if item not in ("", "none")]
    if given.quick:
        size, sizes, rounds = GIGABYTE * 4 // 10, [GIGABYTE * 4 // 10], 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # (what was made is removed)
    with tempfile.TemporaryDirectory(dir=given.work, prefix="netgrow-bench-") as folder:
        work = Path(folder)
        needed = max([4 * size, *(3 * item for item in sizes)])
        if shutil.disk_usage(work).free < needed:
            sys.exit(f"{work}: {needed / 1e9:.0f} GB of room are needed; --work names another place")
        results = at_one_size(size, given.add, rounds, work, given.peer_python if given.peers else None)
        results += over_sizes(sizes, given.add, max(1, min(3, rounds)), work)
        about = machine(work)
    text = "".join(json.dumps({**line, **about}) + "\n" for line in results)
    if given.quick:
        print(text, end="")
    else:
        RESULTS.write_text(text)
        write_page(results, about["machine"], PAGE)
        print(PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
