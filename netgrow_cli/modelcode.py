"""A model from the user's own code: `package.module:factory`, called without arguments."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from netgrow_cli.errors import UsageError, first_line

if TYPE_CHECKING:
    import torch


def load_model(source: str) -> torch.nn.Module:
    """Import the module (from the current folder too) and call the factory, a function or a class.

    Raises UsageError where there is none, where it fails, or where it gives no torch.nn.Module.
    """
    import torch

    module_name, colon, name = source.partition(":")
    if not colon or not name:
        raise UsageError(f"{source}: write package.module:factory, as in 'mypkg.nets:make_model'")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(f"{source}: {error}") from None
    factory = getattr(module, name, None)
    if factory is None:
        raise UsageError(f"{source}: module {module_name!r} has no {name!r}")
    try:
        model = factory()
    except Exception as error:
        raise UsageError(f"{source}: {name}() failed: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"{source}: {name}() gives a {type(model).__name__}, not a torch.nn.Module")
    return model
