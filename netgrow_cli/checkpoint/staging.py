"""Outputs appear under their names complete or not at all.

Each output is written to a hidden file beside its target, so that the last step is a rename within one
file system, which is atomic. Whatever goes wrong before that, the hidden files are removed and what stood
under the targets' names is untouched; this also holds when an output replaces the input.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from netgrow_cli.errors import CheckpointError, UsageError

# Errors of a write that carry no file name; anything else of the kind may come from reading.
WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class Staging:
    """The temporary paths, in the order of the targets, and whether they are to take the targets' names."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.committed = False

    def commit(self) -> None:
        """All outputs are complete: rename them when the block is left."""
        self.committed = True


@contextlib.contextmanager
def staged_outputs(targets: Sequence[Path], *, force: bool, inputs: Sequence[Path] = ()) -> Iterator[Staging]:
    """Temporary paths for `targets`; they take the targets' names once the block has called `commit()`.

    Before any work: UsageError if a target exists and `force` is not given (`inputs` only make the message
    exact), CheckpointError if a target's folder is missing or cannot be written to. An OSError while writing
    becomes a CheckpointError that names the target.
    """
    check_outputs(targets, force=force, inputs=inputs)
    temporary: dict[Path, Path] = {}
    try:
        for target in targets:
            # Noted before it exists: an interrupt in between leaves nothing behind.
            temporary[target] = hidden_beside(target)
            with cannot_write(target):
                _create(temporary[target], like=target)
        staging = Staging([temporary[target] for target in targets])
        with _translate_write_errors(temporary):
            yield staging
        if staging.committed:
            _publish(temporary)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def check_outputs(targets: Sequence[Path], *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """What `staged_outputs` refuses, to be asked for before long work. Raises UsageError, CheckpointError."""
    for target in targets:
        with cannot_write(target):  # even asking for a name that is too long is an error
            _refuse_target(target, force=force, inputs=inputs)
    resolved = [target.parent.resolve() / target.name for target in targets]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path in resolved if resolved.count(path) > 1)
        raise UsageError(f"{twice} is the output of two changes; give each its own path")


def _refuse_target(target: Path, *, force: bool, inputs: Sequence[Path]) -> None:
    if not target.parent.is_dir():
        raise CheckpointError(f"cannot write {target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise CheckpointError(f"cannot write {target}: it is a directory; give a file name with -o")
    if os.path.lexists(target) and not force:
        is_input = any(same_file(target, source) for source in inputs)
        what = "is the input itself" if is_input else "exists"
        raise UsageError(f"{target} {what}; pass --force to replace it or -o another path")


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths are one file; False where one of them is not there."""
    try:
        return a.samefile(b)
    except OSError:
        return False


def require_space(target: Path, size: int) -> None:
    """Refuse what will not fit before hours are spent on it. Raises CheckpointError.

    size: bytes to be written.
    """
    try:
        disk = shutil.disk_usage(target.parent)
    except OSError:  # writing will say what is wrong
        return
    if disk.total and size > disk.free:
        raise CheckpointError(
            f"not enough space for {target}: {size_text(size)} needed, {size_text(disk.free)} free; nothing was written"
        )


def size_text(count: int) -> str:
    """A number of bytes for people."""
    if count < 1000:
        return f"{count} B"
    units = ["kB", "MB", "GB", "TB"]
    value, unit = count / 1000, units.pop(0)
    while value >= 999.95 and units:
        value, unit = value / 1000, units.pop(0)
    return f"{value:.1f} {unit}"


def hidden_beside(target: Path) -> Path:
    """A name for what is to take the target's."""
    # The name does not contain the target's, which may already be as long as names can be.
    return target.parent / f".netgrow-{secrets.token_hex(8)}.tmp"


def _create(path: Path, like: Path) -> None:
    # 0o666 less the umask, as any new file; mkstemp's 0o600 would stay with the checkpoint.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    with contextlib.suppress(OSError):
        path.chmod(stat.S_IMODE(like.stat().st_mode))


def _publish(temporary: dict[Path, Path]) -> None:
    # Where a name stood for something, the new data is on the disk before the name changes: after a power cut it means
    # the old file or the new one. A new name takes nothing away, and waiting for the disk would double the time: a
    # file that a power cut left unfinished is refused by its own sizes, and its input is still there.
    replaced = [target for target in temporary if os.path.lexists(target)]
    for target in replaced:
        with cannot_write(target):
            sync(temporary[target])
    done: list[Path] = []
    for target, path in temporary.items():
        written = f"{', '.join(map(str, done))} already written" if done else "nothing was written"
        with cannot_write(target, written):
            path.replace(target)
        done.append(target)
    for folder in {target.parent for target in replaced}:
        # Some file systems cannot sync a folder; the files are complete all the same.
        with contextlib.suppress(OSError):
            sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def cannot_write(target: Path, written: str = "nothing was written") -> Iterator[None]:
    """An OSError inside becomes a CheckpointError that names the target."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}; {written}") from error


@contextlib.contextmanager
def _translate_write_errors(temporary: dict[Path, Path]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        named = [target for target, path in temporary.items() if error.filename == str(path)]
        if not named and not (error.filename is None and error.errno in WRITE_ERRORS):
            raise
        target = named[0] if named else next(iter(temporary))
        raise CheckpointError(f"cannot write {target}: {error.strerror}; nothing was written") from error
