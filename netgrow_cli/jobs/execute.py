"""A plan is carried out: every tensor of the checkpoint goes to the new file, streamed where both files allow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netgrow_cli.checkpoint import Checkpoint, TensorInfo, Writer
from netgrow_cli.checkpoint.numbers import narrow, widen
from netgrow_cli.checkpoint.positioned import write_at
from netgrow_cli.checkpoint.source import ArraySource, Source, source_of
from netgrow_cli.checkpoint.transfer import Advance, Lanes, copy, in_parallel, nothing
from netgrow_cli.checkpoint.types import Region
from netgrow_cli.errors import CheckpointError
from netgrow_cli.frozen import frozen
from netgrow_cli.surgery.edit import Draws, edited
from netgrow_cli.surgery.plan import Plan
from netgrow_cli.surgery.stream import edit_into
from netgrow_cli.topology.solve import Topology


@frozen
class Execution:
    """What is to be done: a plan for the tensors of a checkpoint, and constants that are added to some first."""

    checkpoint: Checkpoint
    topology: Topology
    plan: Plan
    patches: Mapping[str, Any]
    seed: int
    advance: Advance = nothing

    def infos(self) -> list[TensorInfo]:
        """The new tensors."""
        return list(self.plan.infos(self.topology, self.checkpoint.tensors).values())

    def write(self, writer: Writer) -> None:
        """Give all tensors to the writer, in its order, or fill their regions; `finish` is left to the caller."""
        regions: list[tuple[str, Region]] = []
        for name in self.checkpoint.tensors:
            stays = self._edit(name) is None and self._patch(name) is None
            region = None if writer.carries and stays else writer.region(name)
            if region is None:
                self._give(writer, name)
            else:
                regions.append((name, region))
        lanes = Lanes([(region.fd, region.size, (name, region)) for name, region in regions])
        list(in_parallel(lambda _: lanes.run(self._fill), regions))

    def _fill(self, task: tuple[str, Region]) -> None:
        """One tensor's bytes to where they go."""
        name, new = task
        edit, source, old = self._edit(name), self._changed(name), self.checkpoint.region(name)
        try:
            if source is not None and edit is not None:
                edit_into(source, edit, self.seed, new, self.advance)
            elif source is None and old is not None:
                copy(old, new, self.advance)
            else:
                data = self.checkpoint.read_bytes(name) if source is None else source.whole().tobytes()
                write_at(new.fd, new.start, data)
                self.advance(new.size)
        except EOFError as error:
            where = f"{self.checkpoint.path}: tensor {name!r}"
            raise CheckpointError(f"{where}: {error}; something else is changing it") from None

    def _give(self, writer: Writer, name: str) -> None:
        from netgrow_cli.checkpoint.tensor_bytes import from_stored

        edit, source = self._edit(name), self._changed(name)
        if source is None:
            tensor = self.checkpoint.read(name)
        else:
            values = source.whole()
            if edit is not None:
                values = edited(values, edit, Draws(self.seed, edit, source))
            tensor = from_stored(values, source.dtype)
        writer.write(name, tensor)
        self.advance(tensor.numel() * tensor.element_size())

    def _edit(self, name: str) -> Any:
        return self.plan.edits.get(self.topology.aliases[name])

    def _patch(self, name: str) -> Any:
        return self.patches.get(self.topology.aliases[name])

    def _changed(self, name: str) -> Source | None:
        """The old tensor, patched, where it does not stay as it is."""
        patch = self._patch(name)
        if patch is None and self._edit(name) is None:
            return None
        source = source_of(self.checkpoint, name)
        if patch is None:
            return source
        patched = widen(source.whole(), source.dtype) + patch.double().numpy()
        return ArraySource(narrow(patched, source.dtype), source.dtype)
