"""Fine-tune a small diffusion model by policy gradient to prefer one of eight modes (DDPO; Black et al. 2024).

    python examples/ddpo_toy.py --out runs/ddpo-toy

The stochastic steps of a sampler are a policy whose actions have exact log-probabilities: `sample(..., log_probs=True)`
records them, and `replay_log_probs` computes them again with the current weights, with gradients. The training is
importance-sampled policy gradient with PPO's clipping (DDPO_IS in the paper). Any stochastic sampler can be used.
Requires matplotlib: pip install "sdesamplers[report]".
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from toy_2d import SETUPS, bare, make_data, train

import sdesamplers as sds

TARGET = torch.tensor([1.4, 0.0])  # the rightmost mode of the ring
CLIP = 0.2


def reward(samples: Tensor) -> Tensor:
    """The reward (N,): 1 at the target, close to 0 at the other modes."""
    return torch.exp(-0.5 * (samples - TARGET).square().sum(1) / 0.5**2)


def rollout(model: sds.Model, args: argparse.Namespace, seed: int) -> sds.Result:
    """Draw samples, with the log-probabilities of all their transitions."""
    return sds.sample(
        model, args.sampler, steps=args.steps, spacing="angle", num_samples=args.batch, seed=seed, log_probs=True
    )


def surrogate(model: sds.Model, result: sds.Result, advantages: Tensor) -> Tensor:
    """The loss: the negative of PPO's clipped objective, averaged over samples and transitions."""
    assert result.log_probs is not None
    ratio = (sds.replay_log_probs(model, result) - result.log_probs).exp()
    advantage = advantages[:, None]
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()


def fine_tune(model: sds.FunctionModel, net: torch.nn.Module, args: argparse.Namespace) -> list[float]:
    """Train by policy gradient on `args.epochs` batches of new samples; return the mean reward of each."""
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    curve = []
    for epoch in range(args.epochs):
        result = rollout(model, args, seed=1000 + epoch)
        rewards = reward(result.samples)
        curve.append(float(rewards.mean()))
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        for _ in range(args.inner):
            loss = surrogate(model, result, advantages)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return curve


def draw(before: Tensor, after: Tensor, curve: list[float], batch: int, run: str) -> Figure:
    """Plot the samples before and after, and the mean reward with a band of at most two standard errors.

    `run` is the title: what was fine-tuned and how.
    """
    figure = Figure(figsize=(10.5, 4.2), dpi=80, layout="constrained")
    plots = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
    for plot, points, title in zip(plots, (before, after), ("before", "after"), strict=False):
        label = f"{len(points)} samples"
        plot.scatter(*points.T, s=6, color="#0b66c3", alpha=0.4, linewidths=0, label=label)
        plot.scatter(*TARGET[:, None], s=420, facecolors="none", edgecolors="#d62246", linewidths=1.6)
        plot.scatter([], [], s=60, facecolors="none", edgecolors="#d62246", linewidths=1.6, label="target")
        plot.set(xlabel="first coordinate", ylabel="second coordinate")
        bare(plot)
        plot.set_title(f"{title}: mean reward {float(reward(points).mean()):.2f}", size=11)
    mean = torch.tensor(curve)
    margin = 2 * (mean * (1 - mean) / batch).clamp(min=0).sqrt()  # the largest variance of a reward in [0, 1]
    plots[2].fill_between(range(len(curve)), mean - margin, mean + margin, color="#d62246", alpha=0.2, linewidth=0,
                          label="two standard errors at most")  # fmt: skip
    plots[2].plot(curve, color="#d62246", label=f"mean of {batch} samples")
    plots[2].set(ylim=(0, 1), xlabel="batches of samples", ylabel="mean reward, from 0 to 1")
    plots[2].legend(frameon=False, fontsize=9, loc="upper left")
    plots[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(run, size=12)
    return figure


def main() -> None:
    """Train the toy model, fine-tune it, print and plot the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-steps", type=int, default=3000, help="training steps of the model to fine-tune")
    parser.add_argument("--epochs", type=int, default=60, help="batches of new samples")
    parser.add_argument("--inner", type=int, default=2, help="gradient steps on each batch")
    parser.add_argument("--batch", type=int, default=256, help="samples per batch")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate of the fine-tuning")
    parser.add_argument("--sampler", default="ddpm", help="any stochastic sampler")
    parser.add_argument("--steps", type=int, default=20, help="steps of the sampler")
    parser.add_argument("--out", type=Path, default=Path("runs/ddpo-toy"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = train(SETUPS["ddpm"], make_data("ring", 20_000), steps=args.train_steps)
    net = model.function
    assert isinstance(net, torch.nn.Module)
    fresh = {"steps": args.steps, "spacing": "angle", "num_samples": 1000, "seed": 1}
    before, begin = sds.sample(model, args.sampler, **fresh).samples, time.perf_counter()
    curve = fine_tune(model, net, args)
    seconds, after = time.perf_counter() - begin, sds.sample(model, args.sampler, **fresh).samples
    first, last = reward(before), reward(after)
    error = math.sqrt(float(first.var() + last.var()) / 1000)
    change = f"{float(first.mean()):.3f} -> {float(last.mean()):.3f}"
    print(f"mean reward {change} (standard error of the difference {error:.3f})")
    print(f"fine-tuned in {seconds:.1f} s")
    run = f"DDPO on a ring: {args.sampler}, {args.steps} steps, {args.epochs} batches of {args.batch} samples"
    draw(before, after, curve, args.batch, run).savefig(args.out / "ddpo.png")
    print(f"picture in {args.out}")


if __name__ == "__main__":
    main()
