"""Where a change is written: a file with what goes with it beside it, or a folder with everything in it.

Both are staged: nothing is there under its name before `commit()`.
"""

from __future__ import annotations

import abc
import contextlib
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from netgrow_cli.checkpoint import Checkpoint, check_outputs, staged_outputs
from netgrow_cli.checkpoint.beside import Beside, look_beside
from netgrow_cli.checkpoint.staged_folder import check_folder, staged_folder
from netgrow_cli.checkpoint.staging import Staging, require_space, same_file
from netgrow_cli.errors import CheckpointError, UsageError
from netgrow_cli.jobs.configuration import Configuration

_HEADERS = 1 << 16
"""Room for headers, indexes and specs, which are small beside the weights."""

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")
"""What transformers' Trainer and accelerate write: the state dict of an optimizer."""

_FILE_ENDINGS = {".safetensors": "safetensors", **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), "torch")}

PAST = {
    "expand": "expanded",
    "split": "split",
    "prune": "pruned",
    "recycle": "recycled",
    "merge": "merged",
    "apply": "edited",
}


def default_output(path: Path, command: str) -> Path:
    """`ckpt.pt` becomes `ckpt.expanded.pt`, beside it; a folder's name has no ending: `Llama-3.2-1B.expanded`."""
    if path.is_dir():
        return path.with_name(f"{path.name}.{PAST[command]}")
    return path.with_name(f"{path.stem}.{PAST[command]}{path.suffix}")


class Outputs(abc.ABC):
    """What a change of one checkpoint writes.

    target: its path. warnings: what is left behind, known before anything is written. optimizers: files in a folder
    with optimizers that change too.
    """

    target: Path
    warnings: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()

    @abc.abstractmethod
    def check(self) -> None:
        """Refuse what cannot or must not be written. Raises UsageError, CheckpointError."""

    @abc.abstractmethod
    def staged(self, config: Configuration | None, size: int) -> AbstractContextManager[Staging]:
        """Temporary paths: of the checkpoint, then of the spec and the record where these are files of their own.

        config: the configuration, written along. size: bytes of the tensors, for which there must be room.
        """

    @abc.abstractmethod
    def adopt(self, made: Path) -> None:
        """Let the outputs of another change of the same checkpoint be these; they lie on the same disk."""


def outputs_of(
    checkpoint: Checkpoint, path: Path, output: Path, *, force: bool, drop_optimizer: bool = False
) -> Outputs:
    """The outputs of a change of a checkpoint at `path`. Raises UsageError for a name of another format."""
    if checkpoint.own_files is None:
        _check_ending(checkpoint, path, output)
        return _Files(checkpoint, path, output, force)
    if output.suffix in _FILE_ENDINGS and not output.is_dir():
        raise UsageError(f"{output}: the output of a folder is a folder; `netgrow convert` it then, for a file")
    beside = look_beside(path, checkpoint.own_files)
    return _Folder(path, output, force, drop_optimizer, beside)


def _check_ending(checkpoint: Checkpoint, path: Path, output: Path) -> None:
    """An output has its input's format; a name that says otherwise would mislead."""
    says = _FILE_ENDINGS.get(output.suffix)
    if says is not None and says != checkpoint.format and output.suffix != path.suffix:
        raise UsageError(
            f"{output}: the output has the format of {path.name}, {checkpoint.format}; name it so, and "
            "`netgrow convert` it then"
        )


class _Files(Outputs):
    """A file; the spec and the record lie beside a torch file, and a safetensors file holds them itself."""

    def __init__(self, checkpoint: Checkpoint, path: Path, output: Path, force: bool) -> None:
        self.target = output
        self._path = path
        self._force = force
        beside = [] if checkpoint.format == "safetensors" else [".netgrow.yaml", ".netgrow.json"]
        self._endings = ["", *beside]
        self._targets = [output.with_name(output.name + ending) for ending in self._endings]

    def check(self) -> None:
        check_outputs(self._targets, force=self._force, inputs=[self._path])

    @contextlib.contextmanager
    def staged(self, config: Configuration | None, size: int) -> Iterator[Staging]:
        stale = config.stale if config is not None else None
        if stale is not None:
            check_outputs([stale], force=self._force)
        more = [config.output] if config is not None and config.changes else []
        with staged_outputs([*self._targets, *more], force=self._force, inputs=[self._path]) as staged:
            require_space(self.target, size + _HEADERS)
            if config is not None and config.changes:
                staged.paths[-1].write_text(config.text, encoding="utf-8")
            own = Staging(staged.paths[: len(self._targets)])
            yield own
            staged.committed = own.committed
        if stale is not None:
            stale.unlink(missing_ok=True)

    def adopt(self, made: Path) -> None:
        with staged_outputs(self._targets, force=self._force, inputs=[self._path]) as staged:
            for ending, path in zip(self._endings, staged.paths, strict=True):
                shutil.copymode(path, made.with_name(made.name + ending))
                made.with_name(made.name + ending).replace(path)
            staged.commit()


class _Folder(Outputs):
    """A folder, with all that went with the old one and still fits."""

    def __init__(self, path: Path, output: Path, force: bool, drop_optimizer: bool, beside: Beside) -> None:
        self.target = output
        self._path = path
        self._force = force
        self._beside = beside
        self._drop_optimizer = drop_optimizer
        dropped = (
            [f"left out, as asked for (--drop-optimizer): {', '.join(beside.optimizer)}"] if beside.optimizer else []
        )
        self.warnings = (*beside.notes(), *dropped)
        self.optimizers = () if drop_optimizer or set(beside.optimizer) - set(OPTIMIZER_FILES) else beside.optimizer

    def check(self) -> None:
        check_folder(self.target, force=self._force, inputs=[self._path])
        if self._beside.optimizer and not self._drop_optimizer and not self.optimizers:
            raise CheckpointError(
                f"{self._path}: the optimizer's state in {', '.join(self._beside.optimizer)} is of a kind that netgrow "
                "cannot change with the weights; pass --drop-optimizer to leave it out"
            )
        if self._beside.left_out and same_file(self.target, self._path):
            raise UsageError(
                f"{self.target} holds what the new folder would not, and which would be lost: "
                f"{', '.join(self._beside.left_out)}; move it away, or pass -o another path"
            )

    @contextlib.contextmanager
    def staged(self, config: Configuration | None, size: int) -> Iterator[Staging]:
        with staged_folder(self.target, force=self._force, inputs=[self._path]) as staged:
            states = sum((self._path / name).stat().st_size for name in self.optimizers)
            require_space(self.target, size + self._beside.size + states + _HEADERS)
            (folder,) = staged.paths
            if config is not None and config.changes:
                (folder / config.output.name).write_text(config.text, encoding="utf-8")
            self._beside.copy(folder)
            own = Staging([folder, *(folder / name for name in ("netgrow.yaml", "netgrow.json"))])
            yield own
            staged.committed = own.committed

    def adopt(self, made: Path) -> None:
        with staged_folder(self.target, force=self._force, inputs=[self._path]) as staged:
            (folder,) = staged.paths
            shutil.copymode(folder, made)
            folder.rmdir()
            made.rename(folder)
            staged.commit()
