"""A short PPO for gymnasium's Pendulum-v1: enough to train the actor-critic of the samples in a minute.

Observations are given to the network scaled to -1..1 (the angular velocity divided by 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

ENVIRONMENT = "Pendulum-v1"
SCALE = np.array([1.0, 1.0, 1.0 / 8.0], dtype=np.float32)
TORQUE = 2.0
LOG_STD_RANGE = (-3.0, 0.5)


@dataclass(frozen=True)
class Settings:
    """How the agent is trained. The learning rate is high on purpose: that is what kills units."""

    seed: int = 0
    environments: int = 16
    steps: int = 128
    updates: int = 80
    epochs: int = 8
    minibatch: int = 256
    learning_rate: float = 1e-2
    gamma: float = 0.9
    trace: float = 0.95
    clip: float = 0.2
    value_weight: float = 0.5
    reward_scale: float = 0.1
    max_grad_norm: float = 0.5


@dataclass
class Rollout:
    """What a policy met and did: tensors of steps x environments."""

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor

    def flat(self) -> list[Tensor]:
        return [t.flatten(0, 1) for t in (self.obs, self.actions, self.log_probs, self.advantages, self.returns)]


def environments(number: int) -> gymnasium.vector.VectorEnv:
    """Environments that start again in the step that ends an episode."""
    mode = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    return gymnasium.make_vec(ENVIRONMENT, num_envs=number, vectorization_mode="sync", vector_kwargs=mode)


def scaled(obs: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(obs, dtype=np.float32) * SCALE)


def policy(net: nn.Module, obs: Tensor) -> tuple[Normal, Tensor]:
    """The distribution of the action and the value."""
    mean, log_std, value = net(obs)
    return Normal(mean, log_std.clamp(*LOG_STD_RANGE).exp()), value.squeeze(-1)


def advantages(rewards: Tensor, values: Tensor, done: Tensor, settings: Settings) -> Tensor:
    """Generalised advantage estimates; `values` has one step more than `rewards`.

    Pendulum never terminates, it is only cut off after 200 steps: the trace stops there and the last step,
    whose successor's value is not known, is given the advantage 0.
    """
    result = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[0])
    for step in reversed(range(len(rewards))):
        delta = rewards[step] + settings.gamma * values[step + 1] - values[step]
        following = (1 - done[step]) * (delta + settings.gamma * settings.trace * following)
        result[step] = following
    return result


@torch.no_grad()
def collect(net: nn.Module, env: gymnasium.vector.VectorEnv, obs: Tensor, settings: Settings) -> tuple[Rollout, Tensor]:
    """Play `settings.steps` steps in all environments from `obs`; also gives the observation after them."""
    seen, actions, log_probs, rewards, done, values = [], [], [], [], [], []
    for _ in range(settings.steps):
        distribution, value = policy(net, obs)
        action = distribution.sample()
        following, reward, terminated, truncated, _ = env.step(action.clamp(-TORQUE, TORQUE).numpy())
        seen.append(obs)
        actions.append(action)
        log_probs.append(distribution.log_prob(action).sum(-1))
        rewards.append(torch.from_numpy(reward).float() * settings.reward_scale)
        done.append(torch.from_numpy(terminated | truncated).float())
        values.append(value)
        obs = scaled(following)
    values.append(policy(net, obs)[1])
    advantage = advantages(torch.stack(rewards), torch.stack(values), torch.stack(done), settings)
    returns = advantage + torch.stack(values[:-1])
    rollout = Rollout(torch.stack(seen), torch.stack(actions), torch.stack(log_probs), advantage, returns)
    return rollout, obs


def loss(net: nn.Module, batch: list[Tensor], settings: Settings) -> Tensor:
    obs, actions, log_probs, advantage, returns = batch
    distribution, value = policy(net, obs)
    ratio = (distribution.log_prob(actions).sum(-1) - log_probs).exp()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
    return settings.value_weight * (value - returns).square().mean() - gain


def improve(net: nn.Module, optimizer: torch.optim.Optimizer, rollout: Rollout, settings: Settings) -> None:
    data = rollout.flat()
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(data[0])).split(settings.minibatch):
            optimizer.zero_grad()
            loss(net, [tensor[rows] for tensor in data], settings).backward()
            nn.utils.clip_grad_norm_(net.parameters(), settings.max_grad_norm)
            optimizer.step()


def train(net: nn.Module, settings: Settings) -> None:
    """Train `net` in place, with a learning rate that falls to zero."""
    torch.manual_seed(settings.seed)
    env = environments(settings.environments)
    obs = scaled(env.reset(seed=settings.seed)[0])
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
    for update in range(settings.updates):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - update / settings.updates)
        rollout, obs = collect(net, env, obs, settings)
        improve(net, optimizer, rollout, settings)
    env.close()


@torch.no_grad()
def evaluate(net: nn.Module | None, episodes: int, seed: int) -> tuple[float, Tensor]:
    """The mean return of the mean action (of random actions without a net) and the observations seen."""
    env = environments(episodes)
    env.action_space.seed(seed)
    obs = scaled(env.reset(seed=seed)[0])
    total, seen = 0.0, []
    for _ in range(200):
        seen.append(obs)
        action = env.action_space.sample() if net is None else policy(net, obs)[0].mean.numpy()
        following, reward, *_ = env.step(np.clip(action, -TORQUE, TORQUE))
        total += float(reward.mean())
        obs = scaled(following)
    env.close()
    return total, torch.cat(seen)
