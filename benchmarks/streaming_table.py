"""`docs/streaming.md` from the results of `benchmarks/streaming.py`.

python -m benchmarks.streaming_table     # again from streaming.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]

AIMS = {
    "netgrow expand --no-verify": "at most 1.5 of `cp -r`",
    "netgrow expand": "at most 2.5 of `cp -r`",
    "netgrow inspect": "under 0.3 s",
    "netgrow diff": "under 0.3 s",
    "netgrow inspect (70B)": "under 0.3 s",
    "netgrow diff (70B)": "under 0.3 s",
    "transformers load and save": "2.5 times `expand --no-verify`, or more",
    "mergekit passthrough": "2.5 times `expand --no-verify`, or more",
}

PAGE = """\
# At the speed of the disk

Made by `python -m benchmarks.streaming --peers` (which says how it measures); results in `benchmarks/streaming.jsonl`.
{machine}. Only ratios are worth comparing, and of these only
such as come from a machine in the same state: `cp -r` takes 0.35 s a GB where the system lets it write into memory at
full speed, and up to 1.1 s where it is held back for the disk, as netgrow then is, but less, since it also computes.

## A Llama-shaped checkpoint of {size} GB, bf16, in shards

Every MLP wider by 512 units (`netgrow expand FOLDER --layer 'model.layers.*.mlp.up_proj' --add 512 -o OUT`); whole
processes, start-up included, input in memory, output written to the disk's cache, removed and synced between runs.
The peers load the folder and save it unchanged. Memory is anonymous memory at its peak (no files, no page cache;
what several processes of a command share counts once), sampled every 10 ms.

{changes}

The proof folds every tensor back bit for bit, after all has been written, and runs the pieces around the changed widths
in numpy, which knows all operations in them, so that torch is not imported. Both at once, on mapped files, by processes
of their own: of the processors' time beyond that of `--no-verify`, comparing both folders takes three fifths and the
pieces two. Pieces with operations that numpy does not know (convolutions, recurrent
layers, functions of torch) take torch, which is then imported while the output is written: one and a half seconds more.

`inspect` and `diff` of that folder and its edited copy, and of the shapes of a 70B Llama (80 layers, 141 GB in shards
without data):

{looks}

## As the checkpoint grows

{sizes}
"""


def write_page(results: Sequence[Line], machine: Line, page: Path) -> None:
    """Write the page anew."""
    by_part = {part: [line for line in results if line["part"] == part] for part in ("changes", "looks", "sizes")}
    page.write_text(
        PAGE.format(
            machine="{cores} cores, {memory_gb} GB of memory, {file_system}, Python {python}".format(**machine),
            size=_gigabytes(by_part["changes"][0]) if by_part["changes"] else "?",
            changes=_changes(by_part["changes"]),
            looks=_looks(by_part["looks"]),
            sizes=_sizes(by_part["sizes"]),
        )
    )


def _changes(lines: Sequence[Line]) -> str:
    expand = next((line["seconds"] for line in lines if line["command"] == "netgrow expand --no-verify"), None)
    rows = ["| command | seconds | of `cp -r` | of `expand --no-verify` | memory, MB | aim |"]
    rows.append("| --- | ---: | ---: | ---: | ---: | --- |")
    for line in lines:
        of_expand = f"{line['seconds'] / expand:.2f}" if expand else "-"
        ratio = "-" if line["ratio"] is None else f"{line['ratio']:.2f}"
        aim = AIMS.get(line["command"], "")
        rows.append(
            f"| `{line['command']}` | {line['seconds']:.2f} | {ratio} | {of_expand} | {_megabytes(line)} | {aim} |"
        )
    return "\n".join(rows)


def _looks(lines: Sequence[Line]) -> str:
    torch = next((line["seconds"] for line in lines if "import torch" in line["command"]), None)
    rows = ["| command | seconds | of importing torch | memory, MB | aim |", "| --- | ---: | ---: | ---: | --- |"]
    for line in lines:
        ratio = f"{line['seconds'] / torch:.2f}" if torch else "-"
        aim = AIMS.get(line["command"], "")
        rows.append(f"| `{line['command']}` | {line['seconds']:.3f} | {ratio} | {_megabytes(line)} | {aim} |")
    return "\n".join(rows)


def _sizes(lines: Sequence[Line]) -> str:
    rows = ["| size, GB | command | seconds | seconds a GB | of `cp -r` | memory, MB |"]
    rows.append("| ---: | --- | ---: | ---: | ---: | ---: |")
    for line in sorted(lines, key=lambda line: (line["command"], line["bytes"])):
        each = line["seconds"] / (line["bytes"] / 1e9)
        ratio = "-" if line["ratio"] is None else f"{line['ratio']:.2f}"
        rows.append(
            f"| {_gigabytes(line)} | `{line['command']}` | {line['seconds']:.2f} | {each:.2f} | {ratio} "
            f"| {_megabytes(line)} |"
        )
    return "\n".join(rows)


def _gigabytes(line: Line) -> str:
    return f"{line['bytes'] / 1e9:.1f}"


def _megabytes(line: Line) -> str:
    return f"{line['anonymous'] / 1e6:.0f}"


if __name__ == "__main__":
    here = Path(__file__).resolve()
    found = [json.loads(text) for text in here.with_name("streaming.jsonl").read_text().splitlines()]
    write_page(found, found[0]["machine"], here.parent.parent / "docs" / "streaming.md")
