"""Half an image filled in, one from a sixteenth of its pixels, and colours for a grey one: the embedded model as prior.

python examples/inverse_problems.py
python examples/inverse_problems.py --images 6 --noise 0.2 --out out/inverse.png

Rows of the picture, for each problem: the truth (the model's own samples), what was measured, and what three methods
make of it. The same measurement has many answers where half of the image is missing.

The embedded model is grey, so for colourisation it is put under coloured light: `Tinted`, whose score is exact wherever
the embedded model's is. Grey says nothing of that model's colours, so their exact posterior is their prior, and what
the methods find is measured against it. Its picture is a second file, inverse_problems_colour.png.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdesamplers as sds
from sdesamplers.io.images import grid, to_images

# method, its options, the sampler and its steps; any other sampler would run too
METHODS: dict[str, tuple[str, dict[str, float], str, dict[str, float]]] = {
    "DPS": ("dps", {"scale": 2.0}, "ddpm", {"steps": 50}),
    "PiGDM": ("pigdm", {"scale": 3.0, "data_std": 100.0}, "ddpm", {"steps": 50}),
    "RePaint": ("projection", {}, "repaint", {"steps": 25, "resamples": 6, "eta": 1.0}),
}


def main() -> None:
    """Solve the problems with every method, print how well, draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist", help="a model of pixels, grey for colourisation")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--noise", type=float, default=0.05, help="of the measurement, the data being in [-1, 1]")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every method, in place of its own")
    parser.add_argument("--out", type=Path, default=Path("inverse_problems.png"))
    args = parser.parse_args()

    model = sds.load(args.model)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    keep = torch.zeros(model.shape[1:])
    keep[: model.shape[1] // 2] = 1
    solve(model, {"inpainting": sds.Mask(keep, model.shape), "super-resolution x4": sds.Downsample(4)}, report, args)
    if model.shape[0] == 1:
        tinted = Tinted(model)
        args.out = args.out.with_stem(f"{args.out.stem}_colour")
        solve(tinted, {"colourisation": sds.Grey(3)}, tinted.report, args)


def solve(
    model: sds.Model, problems: dict[str, sds.LinearOperator], report: Callable[..., str], args: argparse.Namespace
) -> None:
    """All problems with all methods, and their picture."""
    truth = sds.sample(model, steps=20, num_samples=args.images, seed=args.seed).samples
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
            how_well = report(result.samples, operator, y, truth)
            print(f"{problem}: {how_well} by {name}, {result.nfe} evaluations")
    grid(to_images(torch.cat(rows), model.data_range), columns=args.images).save(args.out)
    print(f"{args.out}: for each problem the rows truth, measured, {', '.join(METHODS)}")


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


# --- colour -----------------------------------------------------------------------------------------------------------

AXES = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
AXES = AXES / AXES.norm(dim=1, keepdim=True)
"""Orthonormal axes of colour, in (red, green, blue): grey, red against green, yellow against blue."""


def along_axes(x: Tensor) -> Tensor:
    """(N, 3, H, W) of red, green and blue as coordinates along `AXES`."""
    return torch.einsum("kc,nchw->nkhw", AXES.to(x), x)


def from_axes(u: Tensor) -> Tensor:
    """The inverse of `along_axes`, which is its transpose."""
    return torch.einsum("kc,nkhw->nchw", AXES.to(u), u)


class Tinted(sds.Model):
    """A grey model's pictures under coloured light: its picture along grey, smooth Gaussian fields along the others.

    The three coordinates are independent, and a rotation of the colours leaves the noise white, so the score along the
    axes is the three models' own, and rotated back it is that of the coloured picture.

    Args:
        garments: a model of (1, H, W), on a Gaussian process.
        std, length: of the light's colour, at a pixel, and how many pixels it changes over.
    """

    def __init__(self, garments: sds.Model, std: float = 0.25, length: float = 10.0) -> None:
        self.garments, (_, height, width) = garments, garments.shape
        self.process, self.prediction, self.dtype = garments.process, garments.prediction, garments.dtype
        self.shape, self.device, self.name = (3, height, width), garments.device, f"tinted {garments.name}"
        bound = 1.2 / math.sqrt(3)  # the grey model's 1 has red, green and blue of 1/sqrt(3) each
        self.data_range = (-bound, bound)
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
        covariance = std**2 * torch.exp(-torch.cdist(places, places).square() / (2 * length**2))
        mean = torch.zeros(height * width)
        self.light = sds.GaussianModel(mean, covariance, garments.gaussian, prediction=self.prediction)

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor:
        """The prediction (N, 3, H, W), by way of the axes; the same linear map takes all of the types there."""
        u = along_axes(x)
        grey = self.garments.predict(u[:, :1], t)
        colours = [self.light.predict(u[:, k].flatten(1), t).view(len(x), *self.shape[1:]) for k in (1, 2)]
        return from_axes(torch.cat([grey, torch.stack(colours, 1)], 1))

    def report(self, found: Tensor, operator: Any, y: Tensor, truth: Tensor) -> str:
        """The residual's RMS, and the squared size of the colours over its mean in the exact posterior.

        Grey says nothing of the colours, so that their posterior is their prior. They are measured along the directions
        with 1 % and more of the largest variance, in units of the standard deviation. The mean square of that is 1 for
        samples of the posterior, but for the standard error that is told.
        """
        variances, directions = torch.linalg.eigh(self.light.covariances[0])
        wide = variances > 0.01 * variances[-1]
        sizes = (along_axes(found)[:, 1:].flatten(2).double() @ directions[:, wide]).square() / variances[wide]
        residual = float((operator.apply(found) - y).square().mean().sqrt())
        error = math.sqrt(2 / sizes.numel())
        return f"residual {residual:.3f}, colours {float(sizes.mean()):.2f} (1 ± {error:.2f} if exact)"


if __name__ == "__main__":
    main()
