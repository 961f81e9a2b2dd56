"""Loading a torch file without running any code that is in it, and saying in one line why one is refused."""

from __future__ import annotations

import argparse
import pathlib
import re
import types
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from netgrow_cli.errors import CheckpointError

# How torch's restricted unpickler names what it will not construct.
_REFUSED = re.compile(r"(?:Unsupported global: |unsupported )GLOBAL (\S+)|Unsupported class (\S+)")


def load_tree(path: Path, kind: str) -> Any:
    """Everything in the file; tensors of a "zip" stay on the disk until they are read."""
    if kind == "zip":
        _check_archive(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecations say nothing about the user's file
        try:
            with torch.serialization.safe_globals(plain_data()):
                return _load(path, mapped=kind == "zip")
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
        except Exception as error:  # a damaged pickle raises anything, KeyError and IndexError included
            raise CheckpointError(why(path, error)) from None


def _load(path: Path, *, mapped: bool) -> Any:
    if path.suffix != ".safetensors":
        return torch.load(path, mmap=mapped, weights_only=True, map_location="cpu")
    with path.open("rb") as file:  # by this ending torch would take it for safetensors; an open file has none
        return torch.load(file, weights_only=True, map_location="cpu")


def plain_data() -> list[Any]:
    """What training scripts keep beside weights and what cannot do anything when constructed: numpy's
    numbers and arrays, parsed arguments, paths. The two names are where numpy 1 and numpy 2 have it."""
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    numbers = [type(np.dtype(code)) for code in "?bhilqBHILQefdFD"]
    allowed: list[Any] = [np.dtype, np.ndarray, *numbers]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(scalar, f"{module}.scalar"), (reconstruct, f"{module}._reconstruct")]
    return [*allowed, argparse.Namespace, types.SimpleNamespace, defaultdict, type(pathlib.Path())]


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except zipfile.BadZipFile:
        raise CheckpointError(
            f"{path} is truncated or damaged: it starts as a torch file and has no readable end"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    names = {record.filename.split("/", 1)[-1] for record in records}
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript archive and holds code; torch.save its state_dict()")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip archive without data.pkl: torch.save did not write it")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        # torch would map the compressed bytes as if they were numbers
        raise CheckpointError(f"{path} was compressed by something else than torch; torch.load and torch.save it")


def why(path: Path | str, error: BaseException) -> str:
    """In one line, why something could not be loaded."""
    text = str(error)
    if found := _REFUSED.search(text):
        name = found.group(1) or found.group(2)
        return f"{path} contains code ({name.rstrip('.')}), refused; re-save it as a state_dict"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if text.startswith("Weights only load failed"):
        advice = ("Weights only", "Please file", "Check the", "(")
        lines = [line for line in lines if not line.startswith(advice)]
    reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return f"{path} is damaged, or not a checkpoint ({reason})"
