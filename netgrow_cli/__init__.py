"""netgrow: change the width of trained networks offline, proven equal.

    import netgrow_cli
    netgrow_cli.expand("ckpt.pt", layer="fc1", add=64)
    netgrow_cli.fit(model, "ckpt.expanded.pt")

Nothing heavy is imported until a function is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netgrow_cli.errors import CheckpointError, NetgrowError, NotEquivalent, Refused, SpecError, UsageError

if TYPE_CHECKING:
    from netgrow_cli.api import expand, fit, prune, recycle, split, verify
    from netgrow_cli.recorder import UnitRecorder

__version__ = "0.1.0"

_FUNCTIONS = ("expand", "fit", "prune", "recycle", "split", "verify")

__all__ = [
    "CheckpointError",
    "NetgrowError",
    "NotEquivalent",
    "Refused",
    "SpecError",
    "UnitRecorder",
    "UsageError",
    "expand",
    "fit",
    "prune",
    "recycle",
    "split",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        from netgrow_cli import api

        return getattr(api, name)
    if name == "UnitRecorder":
        from netgrow_cli.recorder import UnitRecorder

        return UnitRecorder
    raise AttributeError(f"module 'netgrow_cli' has no attribute {name!r}")
