"""What a `config.json` states, read with the family's defaults; what a shipped spec does not cover is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from netgrow_cli.checkpoint.types import TensorInfo
from netgrow_cli.errors import SpecError
from netgrow_cli.frozen import frozen

MOST_BYTES = 16 * 2**20


def config_path(checkpoint: Path) -> Path | None:
    """The configuration of a checkpoint: `model.expanded.config.json` for it alone, else `config.json` beside it.

    A folder has its own.
    """
    own = checkpoint.with_name(f"{checkpoint.stem}.config.json")
    places = (checkpoint / "config.json",) if checkpoint.is_dir() else (own, checkpoint.parent / "config.json")
    return next((path for path in places if path.is_file()), None)


def read_config(path: Path) -> dict[str, Any]:
    """The object in a configuration. Raises SpecError."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SpecError(f"{path}: larger than {MOST_BYTES >> 20} MiB, which no configuration is")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path}: no valid JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise SpecError(f"{path}: a configuration is a JSON object")
    return found


@frozen
class Settings:
    """A configuration with its family's defaults, and the tensors that it belongs to."""

    path: Path
    family: str
    stated: Mapping[str, Any]
    defaults: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    def get(self, key: str) -> Any:
        """A value; the family's default where the file is silent (which null is not)."""
        return self.stated[key] if key in self.stated else self.defaults.get(key)

    def whole(self, key: str) -> int:
        """A positive whole number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(f"{key} is {value!r}, which should be a positive number")
        return value

    def real(self, key: str) -> float:
        """A number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.refuse(f"{key} is {value!r}, which should be a number")
        return float(value)

    def rows(self, tensor: str) -> int:
        """How many rows a tensor has."""
        return self.shape(tensor)[0]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """A tensor's shape."""
        if tensor not in self.tensors:
            raise SpecError(
                f"{self.path}: it says {self.family}, but the checkpoint has no tensor {tensor!r}; pass --spec"
            )
        return self.tensors[tensor].shape

    def must_be(self, key: str, *allowed: Any) -> None:
        """Refuse any other value of an option that changes the dataflow."""
        if self.get(key) not in allowed:
            self.refuse(f"{key} is {self.get(key)!r}")

    def refuse(self, what: str) -> NoReturn:
        """The shipped spec does not cover this. Raises SpecError."""
        raise SpecError(
            f"{self.path}: {what}, which the spec that ships for {self.family} does not cover; `netgrow trace "
            f"{self.path.parent} -o model.yaml` makes one from the model's own code, for --spec"
        )
