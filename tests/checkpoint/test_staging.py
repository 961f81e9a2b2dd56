"""Outputs are complete or absent, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from netgrow_cli.checkpoint import TensorInfo, create_writer, open_checkpoint, staged_outputs
from netgrow_cli.errors import CheckpointError, UsageError


def contents(folder: Path) -> dict[str, bytes]:
    """All files with their bytes, hidden ones included."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_committed_block_writes_all_outputs(tmp_path: Path) -> None:
    targets = [tmp_path / "a.pt", tmp_path / "b.yaml"]
    with staged_outputs(targets, force=False) as staged:
        assert [path.parent for path in staged.paths] == [tmp_path, tmp_path]
        assert all(path.name.startswith(".") for path in staged.paths)
        for number, path in enumerate(staged.paths):
            path.write_bytes(bytes([number]))
        staged.commit()
        assert not any(target.exists() for target in targets)
    assert contents(tmp_path) == {"a.pt": b"\0", "b.yaml": b"\1"}


def test_without_commit_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with staged_outputs([tmp_path / "a", tmp_path / "b"], force=True) as staged:
        staged.paths[0].write_bytes(b"new")
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
@pytest.mark.parametrize("committed", [True, False])
def test_an_exception_leaves_nothing_and_goes_on(tmp_path: Path, error: type[BaseException], committed: bool) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(error), staged_outputs([tmp_path / "a"], force=True) as staged:
        staged.paths[0].write_bytes(b"new")
        if committed:
            staged.commit()
        raise error
    assert contents(tmp_path) == {"a": b"old"}


def test_existing_targets_need_force(tmp_path: Path) -> None:
    target, source = tmp_path / "a.pt", tmp_path / "in.pt"
    target.write_bytes(b"old")
    source.write_bytes(b"in")
    with pytest.raises(UsageError, match=r"a\.pt exists; pass --force to replace it or -o another path"):
        staged_outputs([tmp_path / "new", target], force=False).__enter__()
    (tmp_path / "link.pt").symlink_to(source)
    with pytest.raises(UsageError, match=r"link\.pt is the input itself; pass --force"):
        staged_outputs([tmp_path / "link.pt"], force=False, inputs=[source]).__enter__()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="dangling exists"):
        staged_outputs([tmp_path / "dangling"], force=False).__enter__()
    (tmp_path / "sub").mkdir()
    with pytest.raises(UsageError, match="output of two changes"):
        staged_outputs([tmp_path / "x", tmp_path / "sub" / ".." / "x"], force=False).__enter__()
    assert {name for name in contents(tmp_path) if name.startswith(".")} == set()


def test_targets_that_cannot_be_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the folder .*missing does not exist"):
        staged_outputs([tmp_path / "missing" / "a"], force=False).__enter__()
    with pytest.raises(CheckpointError, match="it is a directory"):
        staged_outputs([tmp_path], force=True).__enter__()
    with pytest.raises(CheckpointError, match="File name too long; nothing was written"):
        staged_outputs([tmp_path / ("x" * 300)], force=False).__enter__()
    assert contents(tmp_path) == {}


def test_a_folder_without_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, *_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot write .*a: Permission denied; nothing was written"):
        staged_outputs([tmp_path / "a"], force=False).__enter__()


def test_replacing_the_input_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.arange(1000.0)}, path)
    path.chmod(0o640)
    with open_checkpoint(path) as checkpoint, staged_outputs([path], force=True, inputs=[path]) as staged:
        writer = checkpoint.writer(staged.paths[0], [TensorInfo("w", (1001,), "F32")])
        writer.write("w", torch.cat([checkpoint.read("w"), torch.ones(1)]))
        writer.finish()
        staged.commit()
    assert torch.equal(torch.load(path)["w"], torch.cat([torch.arange(1000.0), torch.ones(1)]))
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(contents(tmp_path)) == ["model.pt"]


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with staged_outputs([tmp_path / "a"], force=False) as staged:
        staged.commit()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failing_rename_says_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.name == "b":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    reason = r"cannot write .*b: Read-only file system; .*a already written"
    targets = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(CheckpointError, match=reason), staged_outputs(targets, force=False) as staged:
        staged.commit()
    assert contents(tmp_path) == {"a": b""}


def test_errors_of_reading_are_not_called_errors_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_outputs([tmp_path / "a"], force=False):
        (tmp_path / "probes.pt").read_bytes()
    assert contents(tmp_path) == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def write_large(target: Path, format: str) -> None:
    """A file of a megabyte."""
    with staged_outputs([target], force=True) as staged:
        writer = create_writer(format, staged.paths[0], [TensorInfo(n, (1 << 16,), "F32") for n in "abcd"])
        for name in "abcd":
            writer.write(name, torch.ones(1 << 16))
        writer.finish()
        staged.commit()


@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_a_full_disk(small_disk: Path, format: str) -> None:
    (small_disk / "model").write_bytes(b"old")
    with pytest.raises(CheckpointError, match=r"cannot write .*model: No space left on device; nothing was written"):
        write_large(small_disk / "model", format)
    assert contents(small_disk) == {"model": b"old"}


@pytest.mark.parametrize("format", ["torch", "safetensors"])
@pytest.mark.parametrize("calls", [0, 1, 2, 3, 4])
def test_a_write_that_fails_at_any_moment(
    tmp_path: Path, format: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.pwrite, [calls]

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(CheckpointError, match="No space left on device; nothing was written"):
        write_large(tmp_path / "model", format)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_a_limit_on_file_sizes(tmp_path: Path, format: str) -> None:
    """In a process of its own, as the limit cannot be raised again; it must end without a crash or noise."""
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_staging import CheckpointError, write_large
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            write_large(Path({str(tmp_path / "model")!r}), {format!r})
        except CheckpointError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout == f"cannot write {tmp_path / 'model'}: File too large; nothing was written\n"
    assert (done.stderr, done.returncode) == ("", 0)
    assert contents(tmp_path) == {}
