"""Study every model of the catalogue, one at a time, each in a process of its own; results as they come.

    python -m benchmarks.zoo.run [NAME ...] [--library timm] [--again] [--keep] [--minutes 15] [--gigabytes 12]

A model whose result is there from the same netgrow sources is skipped, so that an interrupted run goes on where it
stopped. --keep takes results of other sources too, --again none. Globs work as names.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.jsonl")


def source_hash() -> str:
    """What tells one state of netgrow's sources from another."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "netgrow_cli").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def results(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The last result of each model."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def write(rows: dict[str, dict[str, Any]], path: Path = RESULTS) -> None:
    """All results, in the order of the catalogue they came in."""
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for _, row in sorted(rows.items()))
    path.write_text(text, encoding="utf-8")


def _one(name: str, library: str, gigabytes: int, answer: Any) -> None:
    """In the child: study one model and send what came of it."""
    limit = gigabytes << 30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.filterwarnings("ignore")
    import torch

    from benchmarks.zoo.models import catalogue
    from benchmarks.zoo.study import study

    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            row = dataclasses.asdict(study(catalogue(library)[name]))
    except BaseException as error:
        place = "".join(traceback.format_exception(error)[-3:])
        row = {
            "name": name,
            "library": library,
            "error": f"{type(error).__name__}: {error}"[:600],
            "place": place[-800:],
        }
    answer.send(row)


def study_apart(name: str, library: str, minutes: float, gigabytes: int) -> dict[str, Any]:
    """The result of one model from a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "netgrow_cli", "benchmarks.zoo.preload"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_one, args=(name, library, gigabytes, sender))
    child.start()
    sender.close()
    row: dict[str, Any] = {"name": name, "library": library, "error": f"no result in {minutes:g} minutes"}
    if receiver.poll(minutes * 60):
        try:
            row = receiver.recv()
        except EOFError:
            row["error"] = "its process ended without a result (memory)"
    child.kill()
    child.join()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--library", action="append")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--gigabytes", type=int, default=12)
    given = parser.parse_args()
    from benchmarks.zoo.models import LIBRARIES, catalogue

    version = source_hash()
    for library in given.library or LIBRARIES:
        for name in catalogue(library):
            if given.names and not any(fnmatch.fnmatchcase(name, pattern) for pattern in given.names):
                continue
            before = results().get(name)
            if before is not None and not given.again and (given.keep or before.get("source") == version):
                continue
            began = time.perf_counter()
            row = study_apart(name, library, given.minutes, given.gigabytes)
            row = {**row, "source": version}
            # (read again: another run may have written meanwhile)
            write({**results(), name: row})
            print(f"{name}: {_line(row)} {time.perf_counter() - began:.0f} s", flush=True)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"ERROR {row['error'].splitlines()[0]}"
    parts = [f"widths {row['widths']}", f"share {row['share']:.4f}"]
    parts += [f"graph {row['graph']:.0e}", f"cert {row['certificate']:.0e}"]
    for command, found in row["changes"].items():
        refused, coded, failed = sum(found["refused"].values()), len(found["coded"]), len(found["failed"])
        counts = f"refused {refused} coded {coded} failed {failed}"
        parts.append(f"{command} {found['done']}/{found['asked']} {counts} ({found['worst']:.0e})")
    if row["unknown"]:
        parts.append(f"unknown {row['unknown']}")
    return " | ".join(parts)


if __name__ == "__main__":
    main()
