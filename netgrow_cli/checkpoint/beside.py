"""What lies in a checkpoint's folder beside the weights that change: what goes along, and what does not.

Everything goes along byte for byte but what would contradict the new weights: other copies of the old ones, the
training state of the old shapes, and caches. What is left out is named, and why.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from netgrow_cli.frozen import frozen

_CACHES = (".git", ".hg", ".svn", ".cache", "__pycache__", ".ipynb_checkpoints", ".DS_Store", ".netgrow-*")
# What netgrow writes anew.
_REPLACED = ("netgrow.yaml", "netgrow.json")

# Weights by the names that loaders know, wherever in the folder they are: of the same model in another form.
_COPIES = (
    *("*.gguf", "*.ggml", "*.onnx", "*.onnx_data", "*.onnx.data", "*.tflite", "*.mlmodel", "*.mlpackage"),
    *("tf_model*.h5", "flax_model*.msgpack", "rust_model.ot", "openvino_*.bin", "openvino_*.xml"),
    *("consolidated*.pth", "consolidated*.safetensors"),
)
_HERE = (
    *("*.safetensors", "*.safetensors.index*.json", "*.bin.index*.json", "*.distcp", ".metadata"),
    *("pytorch_model*.bin", "diffusion_pytorch_model*.bin", "adapter_model*.bin", "model*.bin", "*.h5", "*.msgpack"),
)
_ORIGINAL = ("original/*.pth", "original/*.pt", "original/*.safetensors", "original/*.bin")

_OPTIMIZER = (
    *("optimizer.pt", "optimizer.bin", "optimizer_[0-9]*", "optimizer[0-9]*.bin", "*optim_states.pt"),
    *("global_step*", "pytorch_model_fsdp_[0-9]*", "zero_pp_rank_*", "mp_rank_*"),
)
# The name of the DeepSpeed folder that goes with `global_step*`.
_LATEST = "latest"
# What a Trainer keeps of each time that it saved: checkpoints of their own.
_RUNS = "checkpoint-[0-9]*"

# Small states that do not depend on shapes.
_KNOWN = (
    "rng_state*",
    "random_states*",
    "scheduler*",
    "scaler*",
    "sampler*",
    "training_args.bin",
    "trainer_state.json",
)
_MAYBE_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz", ".h5", ".msgpack")


@frozen
class Beside:
    """carried: the files that go along, relative to the folder. unsure: those of them that look like weights.
    left_out: by name, why. optimizer: files and folders with the state of an optimizer. size: bytes of `carried`.
    """

    folder: Path
    carried: tuple[str, ...]
    unsure: tuple[str, ...]
    left_out: dict[str, str]
    optimizer: tuple[str, ...]
    size: int

    def copy(self, target: Path, *, optimizer: bool = False) -> None:
        """Copy what goes along into a folder; a file that is already there stays. optimizer: its state too."""
        for name in self.optimizer if optimizer else ():
            if (self.folder / name).is_dir():
                shutil.copytree(self.folder / name, target / name)
            else:
                shutil.copyfile(self.folder / name, target / name)
        for name in self.carried:
            place = target / name
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, place)
                shutil.copymode(self.folder / name, place)

    def notes(self, *, unsure: bool = True) -> Iterator[str]:
        """What people should know: what is left out and why, and what may not fit where shapes change."""
        for why in dict.fromkeys(self.left_out.values()):
            names = [name for name, reason in self.left_out.items() if reason == why]
            yield f"left out, {why}: {_few(names)}"
        if self.unsure and unsure:
            yield f"copied as they are, though they may depend on the widths: {_few(list(self.unsure))}"


def look_beside(folder: Path, own: frozenset[str]) -> Beside:
    """Sort all that is in a folder. own: the files of the weights that are read."""
    carried: list[str] = []
    left_out: dict[str, str] = {}
    optimizer: list[str] = []
    pending, seen = [""], set()
    while pending:
        below = pending.pop()
        real = os.path.realpath(folder / below)
        if real in seen:  # a link to a folder above
            continue
        seen.add(real)
        for entry in sorted(os.scandir(folder / below), key=lambda entry: entry.name):
            name = below + entry.name
            if name in own or name in _REPLACED or _matches(entry.name, _CACHES):
                continue
            if _is_optimizer(name) or (name == _LATEST and any(folder.glob("global_step*"))):
                optimizer.append(name)
            elif (why := _why_left_out(name, entry)) is not None:
                left_out[name] = why
            elif entry.is_dir():
                pending.append(name + "/")
            else:
                carried.append(name)
    unsure = tuple(name for name in carried if _maybe_weights(name))
    size = sum((folder / name).stat().st_size for name in carried)
    return Beside(folder, tuple(sorted(carried)), unsure, left_out, tuple(optimizer), size)


def _why_left_out(name: str, entry: os.DirEntry[str]) -> str | None:
    top = "/" not in name
    if _matches(entry.name, _COPIES) or _matches(name, _ORIGINAL) or (top and _matches(entry.name, _HERE)):
        return "as they hold the old weights"
    if top and fnmatch.fnmatchcase(name, _RUNS):
        return "as they are checkpoints of their own"
    if not (entry.is_file() or entry.is_dir()):
        return "as they are no files (a broken link, or something else)"
    return None


def _is_optimizer(name: str) -> bool:
    return "/" not in name and _matches(name, _OPTIMIZER)


def _maybe_weights(name: str) -> bool:
    return name.endswith(_MAYBE_WEIGHTS) and not _matches(PurePosixPath(name).name, _KNOWN)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _few(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
