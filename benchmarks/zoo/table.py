"""docs/zoo.md, from the results.

python -m benchmarks.zoo.table
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.zoo.models import LIBRARIES, catalogue
from benchmarks.zoo.run import ROOT, results

PAGE = ROOT / "docs" / "zoo.md"
RIVALS = Path(__file__).with_name("rivals.jsonl")
Row = Mapping[str, Any]

HEAD = """# The zoo

Every model here was built from its library with random numbers (transformers from small configurations), traced, and
changed; the result of each change was loaded into the library's own model by `netgrow_cli.fit`, and its outputs
compared with those of the model before, in float64.

    python -m benchmarks.zoo.run       # resumable; hours on two cores
    python -m benchmarks.zoo.rivals    # Torch-Pruning on some of them, where it is installed
    python -m benchmarks.zoo.table     # this page

`make zoo` runs a sample of it.

* **widths**: widths that may change. **share**: of the parameters, how many lie in one.
* **graph**: how far the spec's outputs are from the model's; **certificate**: how far outputs move when the units of
  all widths are permuted at random (both relative to the outputs' size; transformers computes norms and positions in
  float32, hence 1e-7).
* **expand, split**: of all widths (by two units, and where the code can host only that, to twice their size), how many
  changes gave equal outputs in the real model; all in one plan, narrowed down where that failed. **prune**: of a sample
  of widths with a unit made dead, how many.
* **refused**: what netgrow does not do because it would not be exact (expand/split). **code**: what the proof by the
  spec passes, and the model's own code cannot host (one number for two sizes, a number written in the code):
  `model_code` or a warning says so (expand/split).
* vit_h_14 has a quarter of its widths here (its split would take more memory than the machine has); all other models
  of torchvision have their full size.
* **s**: seconds to trace, and in all, on one busy core. Above 50 million parameters the comparison in the real model is
  the only one (`--no-verify`).
"""


def page() -> str:
    """The whole page."""
    rows = [row for _, row in sorted(results().items())]
    done = [row for row in rows if "error" not in row]
    parts = [HEAD, _summary(done, [row for row in rows if "error" in row])]
    for library in dict.fromkeys(row["library"] for row in rows):
        parts.append(f"## {library}\n\n{_table([row for row in done if row['library'] == library])}")
    parts.append(_reasons(done))
    if RIVALS.exists():
        parts.append(_rivals([json.loads(line) for line in RIVALS.read_text(encoding="utf-8").splitlines()]))
    return "\n".join(parts)


def _summary(done: list[Row], broken: list[Row]) -> str:
    counts = Counter(row["library"] for row in done)
    listed = ", ".join(f"{count} of {library}" for library, count in counts.items())
    lines = [f"{len(done)} models: {listed}."]
    worst = max(row["certificate"] for row in done)
    lines.append(f"Largest certificate: {worst:.0e}; largest difference of a change: {_worst(done):.0e}.")
    low = sorted((row["share"], row["name"]) for row in done if row["share"] < 0.99)
    lines.append(
        f"Share of the parameters that may change: {sum(row['share'] >= 0.99 for row in done)} models at 99% or more"
        + (f"; below: {', '.join(f'{name} {share:.1%}' for share, name in low)}." if low else ".")
    )
    for command in ("expand", "split", "prune"):
        lines.append(f"{command}: {_counted(done, command)}.")
    missing = _missing({row["name"] for row in (*done, *broken)})
    if missing:
        lines.append(f"Not run yet ({len(missing)}): {', '.join(missing)}.")
    if broken:
        lines.append(
            "Without a result: "
            + ", ".join(f"{row['name']} ({row['error'].splitlines()[0][:80]})" for row in broken)
            + "."
        )
    return "\n".join(f"* {line}" for line in lines) + "\n"


def _missing(names: set[str]) -> list[str]:
    """Models of the catalogue that have no result."""
    return [name for library in LIBRARIES for name in catalogue(library) if name not in names]


def _worst(done: Iterable[Row]) -> float:
    return max(float(found["worst"]) for row in done for found in row["changes"].values())


def _counted(done: Iterable[Row], command: str) -> str:
    found = [row["changes"][command] for row in done]
    numbers = {
        "asked": sum(one["asked"] for one in found),
        "equal in the real model": sum(one["done"] for one in found),
        "refused": sum(sum(one["refused"].values()) for one in found),
        "not hosted by the code": sum(len(one["coded"]) for one in found),
        "failed": sum(len(one["failed"]) for one in found),
    }
    return ", ".join(f"{value} {what}" for what, value in numbers.items())


def _table(rows: Iterable[Row]) -> str:
    lines = [
        "| model | parameters | widths | share | graph | certificate | expand | split | prune | refused | code | s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        changes = row["changes"]
        cells = [
            row["name"].removeprefix(f"{row['library']}/"),
            _millions(row["parameters"]),
            str(row["widths"]),
            f"{row['share']:.2%}",
            f"{row['graph']:.0e}",
            f"{row['certificate']:.0e}",
            *(f"{changes[command]['done']}/{changes[command]['asked']}" for command in ("expand", "split", "prune")),
            "/".join(str(sum(changes[command]["refused"].values())) for command in ("expand", "split")),
            "/".join(str(len(changes[command]["coded"])) for command in ("expand", "split")),
            f"{row['trace_seconds']:.0f} / {row['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def _reasons(done: list[Row]) -> str:
    frozen, refused, coded, failed, unknown = (Counter[str]() for _ in range(5))
    for row in done:
        frozen.update(row["frozen"].keys())
        unknown.update(row["unknown"].keys())
        for found in row["changes"].values():
            refused.update(found["refused"])
            coded.update(_kind(why) for why in found["coded"].values())
            failed.update(_kind(why) for why in found["failed"].values())
    titles = {
        "Frozen, and why (in how many models)": frozen,
        "Operations without a rule (in how many models)": unknown,
        "Refused, and why (how many changes)": refused,
        "Not hosted by the model's code (how many changes)": coded,
        "Failed (how many changes)": failed,
    }
    parts = []
    for title, found in titles.items():
        if found:
            items = "\n".join(f"* {count}: {why}" for why, count in found.most_common(14))
            parts.append(f"## {title}\n\n{items}\n")
    return "\n".join(parts)


def _kind(why: str) -> str:
    """A reason without names and numbers."""
    if " is one number in the model's code" in why:
        return "one number in the model's code for several sizes"
    return why.partition(" [")[0].partition(":")[0]


def _rivals(rows: list[Row]) -> str:
    lines = [
        "## Beside Torch-Pruning\n",
        "Torch-Pruning 1.6.1 and netgrow on the same models. One unit of each width that a layer makes (up to 8,",
        "spread over the model; of a grouped convolution a whole group, and a channel of each group) is made dead",
        "(all that produces it is zero, by netgrow's trace) and pruned: by Torch-Pruning with its group,",
        "by netgrow with the traced spec. *equal*: outputs as before; *wrong*: pruned, and other outputs; *error*: it",
        "raises.\n",
        "| model | units | Torch-Pruning: equal / wrong / error | netgrow: equal / wrong / refused |",
        "| --- | ---: | --- | --- |",
    ]
    for row in rows:
        theirs, ours = row["theirs"], row["ours"]
        one = theirs.get("note") or f"{theirs['equal']} / {theirs['wrong']} / {theirs['error']}"
        other = ours.get("note") or f"{ours['equal']} / {ours['wrong']} / {ours['refused']}"
        lines.append(f"| {row['name']} | {row['layers']} | {one} | {other} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
