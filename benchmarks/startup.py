"""How long the commands that look take, against `python -c "import torch"`.

    python -m benchmarks.startup [--runs 15]

Prints a table: medians of runs that alternate, so that a busy machine slows all of them alike, and the ratio to
importing torch. `inspect` and `diff` of safetensors files should take less than half of that. Exit code 1 if not.
The folders are Llamas of 3 GB, 8 GB and 70B shapes in shards of 1 GB, without data: a header and a hole each.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.llama import LLAMA_70B, Llama, write_sparse
from benchmarks.measure import environment

ROOT = Path(__file__).resolve().parent.parent
CKPT = ROOT / "sample_checkpoints" / "digits_conv.safetensors"
SPEC = ROOT / "specs" / "digits_conv.yaml"
TARGET = 0.5
FOLDERS = {"3 GB": Llama.of_bytes(3 * 10**9), "8 GB": Llama.of_bytes(8 * 10**9), "70B": LLAMA_70B}
LAYER = "model.layers.*.mlp.up_proj"


def commands(other: Path, work: Path) -> dict[str, list[str]]:
    netgrow = [sys.executable, "-m", "netgrow_cli"]
    folders: dict[str, list[str]] = {}
    for name, model in FOLDERS.items():
        wider = dataclasses.replace(model, intermediate=model.intermediate + 512)
        one, two = str(write_sparse(model, work / name)), str(write_sparse(wider, work / f"{name} wider"))
        folders[f"netgrow inspect ({name})"] = [*netgrow, "inspect", one]
        folders[f"netgrow diff ({name})"] = [*netgrow, "diff", one, two]
        plan = [*netgrow, "expand", one, "--layer", LAYER, "--add", "512", "--dry-run", "-o", str(work / "none")]
        folders[f"expand --dry-run ({name})"] = plan
    return {
        'python -c "import torch"': [sys.executable, "-c", "import torch"],
        "netgrow inspect": [*netgrow, "inspect", str(CKPT)],
        "netgrow inspect --spec": [*netgrow, "inspect", str(CKPT), "--spec", str(SPEC)],
        "netgrow inspect --spec --json": [*netgrow, "inspect", str(CKPT), "--spec", str(SPEC), "--json"],
        "netgrow diff": [*netgrow, "diff", str(CKPT), str(other)],
        "netgrow diff --values": [*netgrow, "diff", str(CKPT), str(other), "--values"],
        **folders,
        'python -c ""': [sys.executable, "-c", ""],
    }


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, cwd=ROOT, env=environment())
    taken = time.perf_counter() - began
    if done.returncode not in (0, 1):  # diff's 1 is an answer
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr.decode()}")
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="how often each is run")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "expanded.safetensors"
        netgrow = [sys.executable, "-m", "netgrow_cli", "expand", str(CKPT), "--spec", str(SPEC)]
        words = ["--layer", "fc", "--add", "8", "-o", str(other)]
        subprocess.run([*netgrow, *words], check=True, capture_output=True, cwd=ROOT)
        table = commands(other, Path(folder))
        times: dict[str, list[float]] = {name: [] for name in table}
        for run in range(runs + 1):
            for name, command in table.items():
                taken = seconds(command)
                if run:  # the first one fills the caches
                    times[name].append(taken)
    medians = {name: statistics.median(found) for name, found in times.items()}
    torch = medians['python -c "import torch"']
    print(f"| command | median of {runs}, ms | of importing torch |\n| --- | ---: | ---: |")
    for name, median in medians.items():
        print(f"| `{name}` | {median * 1000:.0f} | {median / torch:.2f} |")
    missed = [name for name, median in medians.items() if name.startswith("netgrow") and median >= TARGET * torch]
    for name in missed:
        print(f"{name} takes {medians[name] / torch:.2f} of importing torch; the target is {TARGET}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
