"""Train the samples again: `python sample_checkpoints/make.py [name ...]`, without a name all of them.

Seeds are fixed and one thread is used, so the same versions on the same kind of machine give the same files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from models import ActorCritic, DigitsConv, DigitsMLP
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
PROBES = 512


def digits_mlp() -> None:
    """A training checkpoint: the model, its AdamW state (with the parameters' names), epoch and accuracy."""
    import digits

    data = digits.split()
    net = DigitsMLP()
    optimizer = torch.optim.AdamW(net.named_parameters(), lr=2e-3)
    digits.train(net, optimizer, data, epochs=40)
    accuracy = digits.accuracy(net, data)
    checkpoint = {
        "model_state_dict": net.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "epoch": 40,
        "accuracy": accuracy,
    }
    torch.save(checkpoint, HERE / "digits_mlp.pt")
    print(f"digits_mlp: test accuracy {accuracy:.4f}")


def digits_conv() -> None:
    """Only the tensors, as safetensors."""
    import digits

    data = digits.split(as_images=True)
    net = DigitsConv()
    digits.train(net, torch.optim.Adam(net.parameters(), lr=2e-3), data, epochs=20)
    save_file(net.state_dict(), HERE / "digits_conv.safetensors")
    print(f"digits_conv: test accuracy {digits.accuracy(net, data):.4f}")


def actor_critic() -> None:
    """A plain state dict, and beside it observations that the trained agent met."""
    import ppo

    net = ActorCritic()
    ppo.train(net, ppo.Settings())
    torch.save(net.state_dict(), HERE / "actor_critic.pt")
    trained, seen = ppo.evaluate(net, episodes=100, seed=1000)
    np.save(HERE / "actor_critic.probes.npy", probes(net, seen).numpy())
    untrained, _ = ppo.evaluate(None, episodes=100, seed=1000)
    print(f"actor_critic: return {trained:.0f}, of random actions {untrained:.0f}")
    print(dead_report("all observations", net, seen))


@torch.no_grad()
def probes(net: ActorCritic, seen: Tensor) -> Tensor:
    """512 of the observations seen: for each unit the one that excites it most, the others at random.

    So a unit that is silent on the probes is silent on everything that was seen.
    """
    strongest = torch.cat([act.argmax(0) for act in net.hidden(seen)]).unique()
    others = torch.randperm(len(seen))[: PROBES - len(strongest)]
    return seen[torch.cat([strongest, others])]


@torch.no_grad()
def dead_units(net: ActorCritic, obs: Tensor) -> dict[str, Tensor]:
    """Which units are zero for every row of `obs`; `enc_a & trunk` are the coupled ones, zero in both."""
    enc_a, enc_b, trunk = ((act == 0).all(0) for act in net.hidden(obs))
    return {"enc_a": enc_a, "enc_b": enc_b, "trunk": trunk, "enc_a & trunk": enc_a & trunk}


def dead_report(what: str, net: ActorCritic, obs: Tensor) -> str:
    lines = [f"dead on {what} ({len(obs)} rows):"]
    for name, dead in dead_units(net, obs).items():
        lines.append(f"  {name}: {int(dead.sum())} of {len(dead)}, units {dead.nonzero().flatten().tolist()}")
    return "\n".join(lines)


MAKERS = {"digits_mlp": digits_mlp, "digits_conv": digits_conv, "actor_critic": actor_critic}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in MAKERS]
    if unknown:
        print(f"unknown sample {', '.join(unknown)}; there are {', '.join(MAKERS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    for name in names or MAKERS:
        torch.manual_seed(0)
        MAKERS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
