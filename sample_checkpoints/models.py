"""The PyTorch modules of the sample checkpoints: plain modules, written as anyone would.

Every width is a constructor argument, so that a network that was widened or pruned can be built too.
The specs of the same names, in `specs/`, describe exactly these `forward` methods.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DigitsMLP(nn.Module):
    """64 pixels -> fc1 -> fc2 -> 10 classes, with ReLU between."""

    def __init__(self, fc1: int = 64, fc2: int = 32, pixels: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(pixels, fc1)
        self.fc2 = nn.Linear(fc1, fc2)
        self.out = nn.Linear(fc2, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(pixels))
        hidden = F.relu(self.fc2(hidden))
        return self.out(hidden)


class ConvNorm(nn.Module):
    """A convolution without bias and its batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, image: Tensor) -> Tensor:
        return self.bn(self.conv(image))


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to the block's input."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, image: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(image)))
        return F.relu(image + self.bn2(self.conv2(hidden)))


class DigitsConv(nn.Module):
    """Digits as images 1x8x8: residual block, a branch concatenated to it, strided convolution, two layers.

    `stem` is also the width of the residual stream, `inner` the width inside the block.
    """

    def __init__(
        self,
        stem: int = 16,
        inner: int = 16,
        branch: int = 8,
        down: int = 32,
        fc: int = 64,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(1, stem, 3)
        self.block = ResidualBlock(stem, inner)
        self.branch = ConvNorm(stem, branch, 1)
        self.down = nn.Conv2d(stem + branch, down, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(down * 2 * 2, fc)
        self.out = nn.Linear(fc, classes)

    def forward(self, image: Tensor) -> Tensor:
        stem = F.relu(self.stem(image))
        block = self.block(stem)
        branch = F.relu(self.branch(block))
        down = F.relu(self.down(torch.cat([block, branch], dim=1)))
        hidden = F.relu(self.fc(torch.flatten(self.pool(down), 1)))
        return self.out(hidden)


class ActorCritic(nn.Module):
    """Two encoders, concatenated into a trunk that is split into heads, with a residual sum for the value.

    The first `mean_units` units of the trunk feed the mean of the action, the other `std_units` the logarithm
    of its standard deviation. The value reads enc_a + trunk, so both are mean_units + std_units wide.
    """

    def __init__(
        self,
        mean_units: int = 32,
        std_units: int = 32,
        enc_b: int = 32,
        observations: int = 3,
        actions: int = 1,
    ) -> None:
        super().__init__()
        trunk = mean_units + std_units
        self.enc_a = nn.Linear(observations, trunk)
        self.enc_b = nn.Linear(observations, enc_b)
        self.trunk = nn.Linear(trunk + enc_b, trunk)
        self.mean = nn.Linear(mean_units, actions)
        self.log_std = nn.Linear(std_units, actions)
        self.value = nn.Linear(trunk, 1)

    def hidden(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The activations of enc_a, enc_b and trunk."""
        act_a = F.relu(self.enc_a(obs))
        act_b = F.relu(self.enc_b(obs))
        return act_a, act_b, F.relu(self.trunk(torch.cat([act_a, act_b], dim=-1)))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        act_a, _, act_t = self.hidden(obs)
        # The cut is where the heads say, so that the code holds at any width.
        mean = self.mean(act_t[..., : self.mean.in_features])
        log_std = self.log_std(act_t[..., self.mean.in_features :])
        value = self.value(act_a + act_t)
        return mean, log_std, value
