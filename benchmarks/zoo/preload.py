"""Imported once by the process that all studies are forked from: it saves seconds a model."""

import contextlib
import importlib

import torch

torch.set_num_threads(1)
for name in ("torchvision", "timm", "transformers"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
