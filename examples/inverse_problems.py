"""Half an image filled in, and an image from a sixteenth of its pixels: the embedded model as the prior.

python examples/inverse_problems.py
python examples/inverse_problems.py --images 6 --noise 0.2 --out out/inverse.png

Rows of the picture, for each problem: the truth (the model's own samples), what was measured, and what three methods
make of it. The same measurement has many answers where half of the image is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdesamplers as sds
from sdesamplers.images import grid, to_images

# method, its options, the sampler and its steps; any other sampler would run too
METHODS: dict[str, tuple[str, dict[str, float], str, dict[str, float]]] = {
    "DPS": ("dps", {"scale": 2.0}, "ddpm", {"steps": 50}),
    "PiGDM": ("pigdm", {"scale": 3.0, "data_std": 100.0}, "ddpm", {"steps": 50}),
    "RePaint": ("projection", {}, "repaint", {"steps": 25, "resamples": 6, "eta": 1.0}),
}


def main() -> None:
    """Solve both problems with every method, print how well, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist", help="a model of pixels")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--noise", type=float, default=0.05, help="of the measurement, the data being in [-1, 1]")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every method, in place of its own")
    parser.add_argument("--out", type=Path, default=Path("inverse_problems.png"))
    args = parser.parse_args()

    model = sds.load(args.model)
    truth = sds.sample(model, steps=20, num_samples=args.images, seed=args.seed).samples
    keep = torch.zeros(model.shape[1:])
    keep[: model.shape[1] // 2] = 1
    problems = {"inpainting": sds.Mask(keep, model.shape), "super-resolution x4": sds.Downsample(4)}
    rows: list[Tensor] = []
    for problem, operator in problems.items():
        y = measure(operator, truth, args)
        rows += [truth, operator.pseudo_inverse(y)]
        print(f"{problem}: {report(rows[-1], operator, y, truth)} as measured")
        for name, (method, options, sampler, words) in METHODS.items():
            if args.steps:
                words = {**words, "steps": args.steps}
            posterior = sds.PosteriorSampling(model, operator, y, args.noise, method, **options)
            result = sds.sample(posterior, sampler, num_samples=args.images, seed=args.seed + 1, **words)
            rows.append(result.samples)
            print(f"{problem}: {report(result.samples, operator, y, truth)} by {name}, {result.nfe} evaluations")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    grid(to_images(torch.cat(rows), model.data_range), columns=args.images).save(args.out)
    print(f"{args.out}: twice the rows truth, measured, {', '.join(METHODS)}")


def measure(operator: Any, truth: Tensor, args: argparse.Namespace) -> Tensor:
    """The measurement of every image, with noise that belongs to the image whatever their number."""
    clean = operator.apply(truth)
    source = sds.NormalSource(args.seed, range(len(truth)), clean.shape[1:])
    return clean + args.noise * source.draw(source.AUXILIARY).to(clean)


def report(found: Tensor, operator: Any, y: Tensor, truth: Tensor) -> str:
    """Peak signal-to-noise ratio against the truth, in dB, and the RMS of what the measurement does not explain."""
    error = (found.clamp(-1, 1) - truth).square().mean((1, 2, 3))
    residual = (operator.apply(found) - y).square().mean().sqrt()
    return f"PSNR {float((10 * torch.log10(4 / error)).mean()):.1f} dB, residual {float(residual):.3f}"


if __name__ == "__main__":
    main()
