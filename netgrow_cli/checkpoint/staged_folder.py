"""A folder appears under its name complete or not at all, as files do; see `staging`.

It is filled as a hidden folder beside its target and then renamed. An older folder of that name is renamed aside first
and removed last: a failure leaves the old one or the new one, never files of both.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from netgrow_cli.checkpoint.detect import DISTRIBUTED
from netgrow_cli.checkpoint.folder_index import BASES, INDEX
from netgrow_cli.checkpoint.staging import WRITE_ERRORS, Staging, cannot_write, hidden_beside, same_file, sync
from netgrow_cli.errors import CheckpointError, UsageError

_SIGNS = (*BASES, *(base + INDEX for base in BASES), DISTRIBUTED, "config.json", "netgrow.json")
_VERSIONED = (".git", ".hg", ".svn")


@contextlib.contextmanager
def staged_folder(target: Path, *, force: bool, inputs: Sequence[Path] = ()) -> Iterator[Staging]:
    """A hidden folder for `target`, the only path; it takes the target's name once the block has called `commit()`.

    Raises as `check_folder` does, and CheckpointError where it cannot be written.
    """
    check_folder(target, force=force, inputs=inputs)
    hidden = hidden_beside(target)
    try:
        with cannot_write(target):
            hidden.mkdir()
            with contextlib.suppress(OSError):
                hidden.chmod(stat.S_IMODE(target.stat().st_mode))
        staging = Staging([hidden])
        with _naming_the_target(target, hidden):
            yield staging
        if staging.committed:
            _publish(hidden, target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def check_folder(target: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """What `staged_folder` refuses, to be asked for before long work. Raises UsageError, CheckpointError."""
    with cannot_write(target):
        if not target.parent.is_dir():
            raise CheckpointError(f"cannot write {target}: the folder {target.parent} does not exist")
        for source in inputs:
            _refuse_nesting(target, source)
        if not os.path.lexists(target):
            return
        if not target.is_dir():
            raise UsageError(f"{target} is a file, and the output is a folder; pass -o another path")
        if not force:
            what = "is the input itself" if any(same_file(target, source) for source in inputs) else "exists"
            raise UsageError(f"{target} {what}; pass --force to replace it or -o another path")
        _refuse_precious(target)


def _refuse_nesting(target: Path, source: Path) -> None:
    place, input_place = target.resolve(), source.resolve()
    if input_place in place.parents and source.is_dir():
        raise UsageError(f"{target} lies in the input {source}; pass -o a path outside of it")
    if place in input_place.parents:
        raise UsageError(f"{target} holds the input {source}; pass -o another path")


def _refuse_precious(target: Path) -> None:
    """--force replaces checkpoints, and not what else a mistyped name may stand for."""
    names = {entry.name for entry in target.iterdir()}
    if names and names.isdisjoint(_SIGNS):
        raise UsageError(f"{target} holds no checkpoint, and --force replaces nothing else; pass -o another path")
    if kept := names.intersection(_VERSIONED):
        raise UsageError(f"{target} holds {min(kept)}, which would be lost; pass -o another path")


def _publish(hidden: Path, target: Path) -> None:
    replaces = os.path.lexists(target)
    if replaces:  # as for files: what takes something's place is on the disk before
        with cannot_write(target):
            _sync_all(hidden)
    old = hidden_beside(target)
    try:
        with cannot_write(target):
            if replaces:
                target.rename(old)
            hidden.rename(target)
        if replaces:
            with contextlib.suppress(OSError):  # some file systems cannot sync a folder
                sync(target.parent)
    finally:
        # An interrupt may come between any two of these lines.
        if os.path.lexists(old) and not os.path.lexists(target):
            old.rename(target)
        elif os.path.lexists(old):
            remove(old)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_all(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root) / name)
        with contextlib.suppress(OSError):
            sync(Path(root))


@contextlib.contextmanager
def _naming_the_target(target: Path, hidden: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        names = [
            Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))
        ]
        ours = any(name == hidden or hidden in name.parents for name in names)
        if not ours and error.errno not in WRITE_ERRORS:
            raise
        raise CheckpointError(f"cannot write {target}: {error.strerror}; nothing was written") from error
