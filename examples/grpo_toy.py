"""Fine-tune a flow model by GRPO on a mixture of Gaussians, where the best possible model is known in closed form.

    python examples/grpo_toy.py --out runs/grpo-toy

The model p is a mixture of eight narrow Gaussians, and the reward is r(x) = x_1. Of all models q, the one with the
largest E_q r - beta KL(q || p) is p(x) e^{r(x)/beta} / Z, another mixture; its mean reward and the maximum, beta log Z,
have closed forms. Flow-GRPO (Liu et al. 2025) maximises this objective over the steps of a sampler, whose
log-probabilities and KL divergences are exact: `Stepper.step` returns them for new steps, and for stored ones if it is
passed their outcome. The policy is the exact velocity of p plus a network that starts at 0.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import sdesamplers as sds

ANGLES = torch.arange(8) * math.pi / 4
MEANS = 1.5 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
VARIANCE, BETA, CLIP = 0.05, 1.0, 0.2
BASE = sds.MixtureModel([1 / 8] * 8, MEANS, [VARIANCE] * 8, sds.RectifiedFlow(), prediction="flow")


def reward(samples: Tensor) -> Tensor:
    """The reward (N,)."""
    return samples[:, 0]


def optimum() -> tuple[float, float]:
    """(mean reward, E r - beta KL) of the best model, the mixture p(x) e^{r(x)/beta} / Z."""
    log_weights = MEANS[:, 0].double() / BETA + VARIANCE / (2 * BETA**2) - math.log(8)
    weights = log_weights.softmax(0)
    return float((weights * (MEANS[:, 0] + VARIANCE / BETA)).sum()), BETA * float(log_weights.logsumexp(0))


class Policy(torch.nn.Module):
    """The velocity (N, 2) of the mixture's flow, plus a network that starts at 0."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        last = torch.nn.Linear(width, 2)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        hidden = (torch.nn.Linear(3, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU())
        self.net = torch.nn.Sequential(*hidden, last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return velocity(x, t) + self.net(torch.cat([x, t[:, None]], 1))


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """The exact velocity of the mixture, for states at one time."""
    with torch.no_grad():
        found: Any = BASE.predict(x.double(), float(t[0]))
    return cast("Tensor", found).to(x.dtype)


def run(
    network: torch.nn.Module,
    args: argparse.Namespace,
    seed: int = 0,
    stored: list[Tensor] | None = None,
    gradients: bool = False,
) -> tuple[list[Tensor], list[sds.Transition]]:
    """The states and transitions of a run: new ones, or those to the stored states, whose first is the start."""
    arguments: dict[str, Any] = {"noise_level": args.noise_level, "gradients": gradients}
    arguments |= {"seed": seed, "num_samples": args.batch} if stored is None else {"start": stored[0]}
    stepper = sds.Stepper(BASE.process, "flow-sde", prediction="flow", shape=(2,), steps=args.steps, **arguments)
    start, made = stepper.x.clone(), list[sds.Transition]()
    while not stepper.is_done:
        outcome = None if stored is None else stored[len(made) + 1]
        made.append(stepper.step(network(stepper.x, stepper.t), prev_sample=outcome))
    return [start, *(step.sample.detach() for step in made)], made


def fine_tune(policy: Policy, args: argparse.Namespace) -> list[float]:
    """Train on `args.epochs` batches of new samples; return the mean reward of each."""
    optimizer = torch.optim.Adam(policy.net.parameters(), lr=args.lr)
    reference, curve = Policy(), []
    for epoch in range(args.epochs):
        with torch.no_grad():
            states, steps = run(policy, args, seed=1000 + epoch)
            _, before = run(reference, args, stored=states)
        old = torch.stack([step.log_prob() for step in steps], 1)
        kl = torch.stack([step.kl(other) for step, other in zip(steps, before, strict=True)], 1)
        rewards = reward(states[-1]).double()
        curve.append(float(rewards.mean()))
        # What a step can still change: the reward, and the divergences of the steps after it.
        value = rewards[:, None] - BETA * (kl.flip(1).cumsum(1).flip(1) - kl)
        advantages = (value - value.mean(0)) / args.scale
        for _ in range(args.inner):
            _, again = run(policy, args, stored=states, gradients=True)
            ratio = (torch.stack([step.log_prob() for step in again], 1) - old).exp()
            kept = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
            cost = torch.stack([step.kl(other) for step, other in zip(again, before, strict=True)], 1)
            loss = (BETA / args.scale * cost - kept).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (1 - epoch / args.epochs)
    return curve


def main() -> None:
    """Fine-tune, and print the mean reward before and after beside that of the best model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=80, help="batches of new samples")
    parser.add_argument("--inner", type=int, default=2, help="gradient steps on each batch")
    parser.add_argument("--batch", type=int, default=512, help="samples per batch, one group")
    parser.add_argument("--lr", type=float, default=1e-2, help="learning rate at the start; it falls to 0")
    parser.add_argument("--scale", type=float, default=1.0, help="unit of the rewards in the loss")
    parser.add_argument("--noise-level", type=float, default=math.sqrt(2), help="of the sampler, flow-sde")
    parser.add_argument("--steps", type=int, default=16, help="steps of the sampler")
    parser.add_argument("--out", type=Path, default=Path("runs/grpo-toy"))
    args = parser.parse_args()
    torch.manual_seed(0)
    policy, begin = Policy(), time.perf_counter()
    curve = fine_tune(policy, args)
    seconds, args.batch = time.perf_counter() - begin, 4000
    with torch.no_grad():
        states, steps = run(policy, args, seed=1)
        _, before = run(Policy(), args, stored=states)
    last = reward(states[-1])
    cost = torch.stack([step.kl(other) for step, other in zip(steps, before, strict=True)], 1).sum(1)
    error = float(last.std()) / math.sqrt(len(last))
    best_reward, best_value = optimum()
    found = float(last.mean())
    print(f"mean reward {curve[0]:.3f} -> {found:.3f} +- {error:.3f}; of the best model {best_reward:.3f}")
    print(f"reward - beta KL {found - BETA * float(cost.mean()):.3f}; at most {best_value:.3f}")
    print(f"fine-tuned in {seconds:.1f} s")
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {"curve": curve, "reward": found, "standard_error": error, "best_reward": best_reward}
    (args.out / "grpo.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
