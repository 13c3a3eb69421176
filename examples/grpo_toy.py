"""Fine-tune a flow model by GRPO on a mixture of Gaussians, where the best possible model is known in closed form.

    python examples/grpo_toy.py --out runs/grpo-toy

The model p is a mixture of eight narrow Gaussians, and the reward is r(x) = x_1. Of all models q, the one with the
largest E_q r - beta KL(q || p) is p(x) e^{r(x)/beta} / Z, another mixture; its mean reward and the maximum, beta log Z,
have closed forms. Flow-GRPO (Liu et al. 2025) maximises this objective over the steps of a sampler, whose
log-probabilities and KL divergences are exact: `Stepper.step` returns them for new steps, and for stored ones if it is
passed their outcome. The policy is the exact velocity of p plus a network that starts at 0.

A policy of finitely many Gaussian steps cannot attain beta log Z. The largest value of any policy of 16 such steps, by
dynamic programming in tests/examples/test_rollout_examples.py, is 0.483, with a mean reward of 0.880.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

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


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of (N,) values with its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


class Policy(torch.nn.Module):
    """What is added to the velocity v (N, 2) of the mixture's flow: a network that starts at 0.

    It receives the clean sample x - t v that the mixture expects too, which shows how a state would change the reward;
    without it, training takes several times as long.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        last = torch.nn.Linear(width, 2)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        hidden = (torch.nn.Linear(5, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU())
        self.net = torch.nn.Sequential(*hidden, last)

    def forward(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.net(torch.cat([x, x - t[:, None] * v, t[:, None]], 1))
        return found


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """The exact velocity of the mixture, for states at one time."""
    with torch.no_grad():
        found: Any = BASE.predict(x.double(), float(t[0]))
    return cast("Tensor", found).to(x.dtype)


class Rollout(NamedTuple):
    """A run of the sampler.

    Attributes:
        states: the states of the evaluations and the samples, each (N, 2).
        velocities: the mixture's velocity at each evaluation.
        times: of the evaluations.
        steps: the transitions.
    """

    states: list[Tensor]
    velocities: list[Tensor]
    times: list[float]
    steps: list[sds.Transition]

    @property
    def log_probs(self) -> Tensor:
        """The log-probabilities of the steps, (N, steps)."""
        return torch.stack([step.log_prob() for step in self.steps], 1)

    def kl(self, other: Rollout) -> Tensor:
        """The divergence of each step from that of another policy at the same states, (N, steps)."""
        return torch.stack([step.kl(theirs) for step, theirs in zip(self.steps, other.steps, strict=True)], 1)


def run(
    policy: Policy | None,
    args: argparse.Namespace,
    seed: int = 0,
    stored: Rollout | None = None,
    gradients: bool = False,
) -> Rollout:
    """A new run, or the transitions to the states of a stored one; of the mixture itself if `policy` is None."""
    arguments: dict[str, Any] = {"noise_level": args.noise_level, "gradients": gradients}
    arguments |= {"seed": seed, "num_samples": args.batch} if stored is None else {"start": stored.states[0]}
    stepper = sds.Stepper(BASE.process, "flow-sde", prediction="flow", shape=(2,), steps=args.steps, **arguments)
    made = Rollout([stepper.x.clone()], [], [], [])
    while not stepper.is_done:
        k, x, t = stepper.evaluations, stepper.x, stepper.t
        output = velocity(x, t) if stored is None else stored.velocities[k]
        made.velocities.append(output)
        made.times.append(float(t[0]))
        # The last step adds no noise, so it has no density and no divergence: nothing would train it or hold it back.
        if policy is not None and k < args.steps - 1:
            output = output + policy(x, output, t)
        made.steps.append(stepper.step(output, prev_sample=None if stored is None else stored.states[k + 1]))
        made.states.append(made.steps[-1].sample.detach())
    return made


def baseline(rollout: Rollout, value: Tensor) -> Tensor:
    """The part of `value` (N, steps) that the state before each step predicts, by least squares.

    The predictors are quadratic in the state and in the clean sample that the mixture expects from it. A step is
    credited with what it changes, and the last steps, whose states almost determine the reward, change little.
    """
    found = []
    for k, (x, v, t) in enumerate(zip(rollout.states[:-1], rollout.velocities, rollout.times, strict=True)):
        known = torch.cat([x, x - t * v], 1).double()
        squares = (known[:, :, None] * known[:, None, :]).flatten(1)[:, [0, 1, 5, 10, 11, 15]]
        predictors = torch.cat([torch.ones_like(known[:, :1]), known, squares], 1)
        found.append(predictors @ (torch.linalg.pinv(predictors) @ value[:, k]))
    return torch.stack(found, 1)


def fine_tune(policy: Policy, args: argparse.Namespace) -> list[float]:
    """Train on `args.epochs` batches of new samples; return the mean reward of each."""
    optimizer, curve = torch.optim.Adam(policy.parameters(), lr=args.lr), []
    for epoch in range(args.epochs):
        with torch.no_grad():
            rollout = run(policy, args, seed=1000 + epoch)
            reference = run(None, args, stored=rollout)
        old, kl, rewards = rollout.log_probs, rollout.kl(reference), reward(rollout.states[-1]).double()
        curve.append(float(rewards.mean()))
        # What a step can still change: the reward, and the divergences of the steps after it.
        value = rewards[:, None] - BETA * (kl.flip(1).cumsum(1).flip(1) - kl)
        advantages = (value - baseline(rollout, value)) / args.scale
        for _ in range(args.inner):
            again = run(policy, args, stored=rollout, gradients=True)
            ratio = (again.log_probs - old).exp()
            kept = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
            loss = (BETA / args.scale * again.kl(reference) - kept).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (1 - epoch / args.epochs)
    return curve


def main() -> None:
    """Fine-tune, and print the mean reward before and after beside that of the best model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=120, help="batches of new samples")
    parser.add_argument("--inner", type=int, default=4, help="gradient steps on each batch")
    parser.add_argument("--batch", type=int, default=1024, help="samples per batch, one group")
    parser.add_argument("--lr", type=float, default=2e-2, help="learning rate at the start; it falls to 0")
    parser.add_argument("--scale", type=float, default=1.0, help="unit of the rewards in the loss")
    parser.add_argument("--noise-level", type=float, default=math.sqrt(2), help="of the sampler, flow-sde")
    parser.add_argument("--steps", type=int, default=16, help="steps of the sampler")
    parser.add_argument("--out", type=Path, default=Path("runs/grpo-toy"))
    args = parser.parse_args()
    torch.manual_seed(0)
    policy, begin = Policy(), time.perf_counter()
    curve = fine_tune(policy, args)
    seconds, args.batch = time.perf_counter() - begin, 16000
    with torch.no_grad():
        rollout = run(policy, args, seed=1)
        cost = BETA * rollout.kl(run(None, args, stored=rollout)).sum(1)
    last = reward(rollout.states[-1]).double()
    (found, error), (value, value_error) = mean_and_error(last), mean_and_error(last - cost)
    best_reward, best_value = optimum()
    print(f"mean reward {curve[0]:.3f} -> {found:.3f} +- {error:.3f}; of the best model {best_reward:.3f}")
    print(f"reward - beta KL {value:.3f} +- {value_error:.3f}; at most {best_value:.3f}")
    print(f"fine-tuned in {seconds:.1f} s")
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {"curve": curve, "reward": found, "standard_error": error, "best_reward": best_reward}
    facts |= {"value": value, "value_error": value_error, "best_value": best_value}
    (args.out / "grpo.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
