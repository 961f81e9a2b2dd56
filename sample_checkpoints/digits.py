"""Scikit-learn's digits (1797 images of 8x8): the split, a training loop, the accuracy."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

Split = tuple[Tensor, Tensor, Tensor, Tensor]


def split(as_images: bool = False) -> Split:
    """Training and test pixels in 0..1 and their labels: (train_x, train_y, test_x, test_y)."""
    bunch = load_digits()
    pixels = (bunch.data / 16.0).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, bunch.target, test_size=0.25, random_state=0, stratify=bunch.target
    )
    shape = (-1, 1, 8, 8) if as_images else (-1, 64)
    train, test = (torch.from_numpy(x).reshape(shape) for x in (train_x, test_x))
    return train, torch.from_numpy(train_y).long(), test, torch.from_numpy(test_y).long()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, data: Split, epochs: int) -> None:
    """Train `net` in place by cross entropy, in batches of 64; leaves it in evaluation mode."""
    pixels, labels = data[0], data[1]
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(pixels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(pixels[rows]), labels[rows]).backward()
            optimizer.step()
    net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, data: Split) -> float:
    """The share of the test images that `net` names right."""
    return (net(data[2]).argmax(1) == data[3]).float().mean().item()
