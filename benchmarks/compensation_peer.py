"""Torch-Pruning's part of `compensation.py`, run by the interpreter that has it: `python compensation_peer.py FOLDER`.

FOLDER holds `data.npz` (training images and labels, test images), `ratios.json` and a `<seed>.pt` for each trained
network. What comes of it are the pruned networks' outputs on the test images, `peer-<seed>.npz`.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch_pruning as tp
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "sample_checkpoints"))

import models

IMPORTANCES = {
    "tp-magnitude": tp.importance.GroupMagnitudeImportance,
    "tp-taylor": tp.importance.GroupTaylorImportance,
}


def pruned(state: dict[str, torch.Tensor], kind: str, ratio: float, data: dict[str, np.ndarray]) -> models.DigitsConv:
    """All layers but the last pruned by that share, each for itself."""
    net = models.DigitsConv()
    net.load_state_dict(state)
    net.eval()
    images = torch.from_numpy(data["train_x"])
    pruner = tp.pruner.BasePruner(
        net, images[:2], importance=IMPORTANCES[kind](), pruning_ratio=ratio, ignored_layers=[net.out]
    )
    if kind == "tp-taylor":  # (which takes the gradients of the loss on the training images)
        F.cross_entropy(net(images), torch.from_numpy(data["train_y"])).backward()
    pruner.step()
    return net


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = dict(np.load(folder / "data.npz"))
    ratios = json.loads((folder / "ratios.json").read_text())
    for path in sorted(folder.glob("*.pt")):
        state = torch.load(path, weights_only=True)
        found = {}
        for kind in IMPORTANCES:
            for ratio in ratios:
                net = pruned(state, kind, ratio, data)
                with torch.no_grad():
                    found[f"{kind} {ratio}"] = net(torch.from_numpy(data["test_x"])).numpy()
                found[f"{kind} {ratio} parameters"] = np.array(sum(each.numel() for each in net.parameters()))
        np.savez(folder / f"peer-{path.stem}.npz", **found)


if __name__ == "__main__":
    main()
