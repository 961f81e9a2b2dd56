"""Refresh what the docs show: the output of commands, the table of operations in spec.md.

Run as `python docs/refresh.py`.

A block fenced as `console` starts with `$ netgrow ...`; what follows is its output, standard error first. The
commands run one after another in a folder set up as demo.sh does. `tests/test_readme.py` checks that nothing is stale.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
"""Where commands are shown with what they print."""
_BLOCK = re.compile(r"```console\n\$ (?P<command>.*?)\n(?P<output>.*?)```", re.DOTALL)
_TABLE = re.compile(r"(<!-- operations -->\n).*?(\n<!-- end -->)", re.DOTALL)
_TIME = re.compile(r"done in [\d.]+ s")


def prepare(folder: Path) -> None:
    """The files that commands work on."""
    samples = ROOT / "sample_checkpoints"
    for name in ("actor_critic.pt", "actor_critic.probes.npy", "digits_mlp.pt"):
        shutil.copyfile(samples / name, folder / name)
    shutil.copyfile(ROOT / "specs" / "actor_critic.yaml", folder / "actor_critic.pt.netgrow.yaml")


def run(command: str, folder: Path) -> str:
    """What a command prints, standard error first; running times are taken out."""
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    program = [sys.executable, "-m", "netgrow_cli", *shlex.split(command)[1:]]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return steady(done.stderr + done.stdout)


def steady(text: str) -> str:
    """Text without what differs from run to run: times, and differences that are rounding errors."""
    text = _TIME.sub("done in 2.0 s", text)
    return re.sub(r"(?m)[ \t]+$", "", text)


def refreshed(text: str) -> str:
    """A page's text with every block's output as it is now."""
    if not _BLOCK.search(text):
        return text
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        return _BLOCK.sub(lambda found: _block(found["command"], folder), text)


def _block(command: str, folder: Path) -> str:
    return f"```console\n$ {command}\n{run(command, folder)}```"


def with_operations(text: str) -> str:
    """The text of spec.md with the table of operations as the registry has them."""
    from netgrow_cli.topology.ops import OPS
    from netgrow_cli.topology.ops.base import REQUIRED

    rows = ["| op | parameters | settings | |", "| --- | --- | --- | --- |"]
    for op in OPS.values():
        params = ", ".join(param.name + ("?" if param.optional else "") for param in op.params)
        settings = ", ".join(
            name if attr.default is REQUIRED else f"{name} = {attr.default}"
            for name, attr in op.attrs.items()
            if name != "ranges"
        )
        rows.append(f"| `{op.name}` | {params} | {settings} | {op.doc} |")
    return _TABLE.sub(lambda found: found[1] + "\n".join(rows) + found[2], text)


if __name__ == "__main__":
    guide = ROOT / "docs" / "spec.md"
    guide.write_text(with_operations(guide.read_text(encoding="utf-8")), encoding="utf-8")
    for page in PAGES:
        page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")
