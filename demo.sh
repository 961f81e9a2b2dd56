#!/usr/bin/env bash
# netgrow on a sample: an actor-critic whose ReLU units died during training. Everything lands in demo-out/.
set -euo pipefail
cd "$(dirname "$0")"
rm -rf demo-out
mkdir demo-out
cp sample_checkpoints/actor_critic.pt sample_checkpoints/actor_critic.probes.npy sample_checkpoints/digits_mlp.pt demo-out/
cp specs/actor_critic.yaml demo-out/actor_critic.pt.netgrow.yaml
cd demo-out

say() { printf '\n\033[1m# %s\033[0m\n' "$1"; }
run() { printf '\033[36m$ %s\033[0m\n' "$*"; "$@"; }

say "Which indices of which tensors belong together? enc_a and enc_b are concatenated into trunk, trunk is cut into two heads, and a sum couples it with enc_a."
run netgrow inspect actor_critic.pt

say "Is that true of the real numbers? Permute the units of every width at random: the outputs must not change."
run netgrow check actor_critic.pt

say "Dead units become halves of live ones, through the concatenation, the residual and the split."
run netgrow recycle actor_critic.pt --layer trunk --layer enc_b --probe-data actor_critic.probes.npy --check-learnable

say "The new checkpoint computes what the old one did, on everything the agent saw."
run netgrow verify actor_critic.pt actor_critic.recycled.pt --probe-data actor_critic.probes.npy

say "A plain chain needs no spec: 64 more units, the function unchanged, Adam's moments grown along."
run netgrow expand digits_mlp.pt --layer fc1 --add 64
run netgrow diff digits_mlp.pt digits_mlp.expanded.pt || true
