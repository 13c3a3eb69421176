"""Steer samples towards a reward that the network knows nothing of: a mixture with a closed form, and pictures.

python examples/steering.py
python examples/steering.py --label 9 --particles 1 8 --out out/boots.png

The first table is for a one-dimensional Gaussian mixture with the reward x. The tilted mixture is known, so the
estimates of the normalising constant Z = E[exp(reward)] and of the tilted mean can be compared with it.

The second table and the picture are of the embedded model, which draws garments of ten kinds without being asked for
one. The reward is the log-probability of one kind by the embedded classifier, so exp(reward) is a likelihood, and the
steered samples are draws from the model's posterior given that label. The rows of the picture have the same seeds.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdesamplers as sds
from sdesamplers.io.images import to_images
from sdesamplers.io.sheets import Sheet
from sdesamplers.metrics import Scorer

LABELS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
WEIGHTS, MEANS, VARIANCES = np.array([0.5, 0.3, 0.2]), np.array([-1.0, 0.5, 1.5]), np.array([0.05, 0.1, 0.2])


def main() -> None:
    """Print both tables and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", type=int, default=7, choices=range(10), help="the kind of garment")
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 4, 16], help="particles per sample")
    parser.add_argument("--samples", type=int, default=8, help="number of samples")
    parser.add_argument("--groups", type=int, default=200, help="groups of particles for the mixture")
    parser.add_argument("--steps", type=int, default=25, help="steps of the sampler for pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("steering.png"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    mixture(args)
    pictures(args)


def mixture(args: argparse.Namespace) -> None:
    """Compare the estimates of a tilted mixture with the closed form."""
    model = sds.MixtureModel(WEIGHTS, MEANS[:, None], VARIANCES, sds.RectifiedFlow(), prediction="flow")
    shares = WEIGHTS * np.exp(MEANS + VARIANCES / 2)  # times exp(x), a Gaussian's mean moves by its variance
    print(f"mixture: Z = {shares.sum():.4f}, tilted mean {shares @ (MEANS + VARIANCES) / shares.sum():.4f}")
    for particles in args.particles:
        result = sds.steer(
            model, lambda x: x[:, 0], "dpmpp-2m-sde", steps=50, particles=particles, num_samples=args.groups,
            seed=args.seed,
        )  # fmt: skip
        z = result.log_normalizer.exp()
        mean = (z * (result.weights * result.particles[..., 0]).sum(1)).sum() / z.sum()
        error = z.std() / len(z) ** 0.5
        print(f"  {particles} particles: Z {z.mean():.4f} ± {error:.4f}, tilted mean {mean:.4f}, one Z ± {z.std():.3f}")


def pictures(args: argparse.Namespace) -> None:
    """Steer the embedded model, by particles alone and with twisted proposals."""
    model = sds.load("fashion-mnist")
    classifier = Scorer(Path(str(files("sdesamplers") / "assets" / "fashion-mnist-metrics"))).net

    def reward(images: Tensor) -> Tensor:
        log_probabilities: Tensor = classifier(images).log_softmax(1)
        return log_probabilities[:, args.label]

    runs: dict[str, dict[str, Any]] = {f"{count} particles": {"particles": count} for count in args.particles}
    few = sorted(args.particles)[len(args.particles) // 2]
    runs[f"{few} particles, twisted"] = {"particles": few, "twist": 1.0}
    rows = []
    print(f"{LABELS[args.label]}: samples of that class, mean reward, effective particles, estimate of log p(class)")
    for name, settings in runs.items():
        result = sds.steer(
            model, reward, "ddpm", steps=args.steps, num_samples=args.samples, seed=args.seed, at=2, batch_size=64,
            **settings,
        )  # fmt: skip
        rows.append((name, to_images(result.samples, model.data_range)))
        with torch.no_grad():
            found = int((classifier(result.samples).argmax(1) == args.label).sum())
        rewards = result.rewards.gather(1, result.selected[:, None])
        print(
            f"  {name}: {found} of {args.samples}, {rewards.mean():.2f}, {result.ess[:, -1].mean():.1f}, "
            f"{result.log_normalizer.exp().mean().log():.2f}"
        )
    note = (
        f"{model.name} steered to {LABELS[args.label]}: ddpm, {args.steps} steps, seed {args.seed}; a column is a seed"
    )
    Sheet.of_strips(rows, note=note).save(args.out)
    print(f"{args.out}: rows: {'; '.join(runs)}")


if __name__ == "__main__":
    main()
