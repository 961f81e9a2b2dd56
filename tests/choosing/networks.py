"""Networks as specs and as torch modules, for tests of what scores say of their units."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from netgrow_cli.jobs.job import Job, Options, opened

MIXED = """
netgrow: 1
inputs:
  pixels: [batch, 2, 7, 7]
layers:
  conv: {op: conv2d, from: pixels}
  act: {op: relu, from: conv}
  flat: {op: flatten, from: act}
  fc: {op: linear, from: flat}
  act_fc: {op: tanh, from: fc}
  side: {op: linear, from: flat}
  act_side: {op: relu, from: side}
  both: {op: cat, from: [act_fc, act_side]}
  out: {op: linear, from: both}
outputs: [out]
"""


class Mixed(nn.Module):
    """A convolution that two layers read, whose outputs are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.fc = nn.Linear(6 * 25, 5)
        self.side = nn.Linear(6 * 25, 4)
        self.out = nn.Linear(9, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        flat = self.conv(pixels).relu().flatten(1)
        return self.out(torch.cat([self.fc(flat).tanh(), self.side(flat).relu()], 1))


RECURRENT = """
netgrow: 1
inputs:
  steps: [batch, 6, 3]
layers:
  rnn: {op: lstm, from: steps}
  last: {op: slice, from: rnn, axis: 1, start: 5, stop: 6}
  flat: {op: flatten, from: last}
  out: {op: linear, from: flat}
outputs: [out]
"""


@contextlib.contextmanager
def job_of(folder: Path, state: object, spec: str, **options: object) -> Iterator[Job]:
    """A saved checkpoint, opened with a spec."""
    path = folder / "ckpt.pt"
    torch.save(state, path)
    (folder / "spec.yaml").write_text(spec, encoding="utf-8")
    with opened(path, Options(spec=folder / "spec.yaml", **options)) as job:  # type: ignore[arg-type]
        yield job


def ids(job: Job) -> dict[str, int]:
    """Width ids by name."""
    return {info.name: info.width.id for info in job.topology.widths.values()}
