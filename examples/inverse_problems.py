"""Inverse problems with the embedded model as the prior: inpainting, super-resolution and colourisation.

python examples/inverse_problems.py
python examples/inverse_problems.py --images 6 --noise 0.2 --out out/inverse.png    # or .svg

The problems are half an image to fill in, an image from a sixteenth of its pixels, and colours for a grey image. The
rows of the picture are, for each problem: the truth (samples of the model), the measurement, and the reconstructions by
three methods. With half of the image missing, many images fit the same measurement.

The embedded model is grey, so for colourisation it is placed under coloured light: `Tinted`, whose score is exact if
that of the embedded model is. The grey values contain no information on the colours of this model, so their exact
posterior is their prior, against which the results are measured. This picture is a second file,
inverse_problems_colour.png.
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
from sdesamplers.io.images import to_images
from sdesamplers.io.sheets import Sheet

# method, options of the method, sampler, arguments of the sampler; any other sampler would work too
METHODS: dict[str, tuple[str, dict[str, float], str, dict[str, float]]] = {
    "DPS": ("dps", {"scale": 2.0}, "ddpm", {"steps": 50}),
    "PiGDM": ("pigdm", {"scale": 3.0, "data_std": 100.0}, "ddpm", {"steps": 50}),
    "RePaint": ("projection", {}, "repaint", {"steps": 25, "resamples": 6, "eta": 1.0}),
}


def main() -> None:
    """Solve the problems with every method, print the errors, save the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist", help="a model of images, grey for colourisation")
    parser.add_argument("--images", type=int, default=6, help="number of images")
    parser.add_argument("--noise", type=float, default=0.05, help="noise of the measurement, for data in [-1, 1]")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps of every method, instead of its default")
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
    """Solve all problems with all methods and save the picture."""
    truth = sds.sample(model, steps=20, num_samples=args.images, seed=args.seed).samples
    rows: list[tuple[str, Tensor]] = []
    for problem, operator in problems.items():
        y = measure(operator, truth, args)
        rows += [(f"{problem}: truth", truth), ("measured", operator.pseudo_inverse(y))]
        print(f"{problem}: {report(rows[-1][1], operator, y, truth)} as measured")
        for name, (method, options, sampler, settings) in METHODS.items():
            if args.steps:
                settings = {**settings, "steps": args.steps}
            posterior = sds.PosteriorSampling(model, operator, y, args.noise, method, **options)
            result = sds.sample(posterior, sampler, num_samples=args.images, seed=args.seed + 1, **settings)
            rows.append((f"{name}, {result.nfe} NFE", result.samples))
            errors = report(result.samples, operator, y, truth)
            print(f"{problem}: {errors} by {name}, {result.nfe} evaluations")
    note = f"{model.name}, noise {args.noise:g}, seed {args.seed}; columns are images, NFE are evaluations per sample"
    Sheet.of_strips([(label, to_images(samples, model.data_range)) for label, samples in rows], note=note).save(
        args.out
    )
    print(f"{args.out}: rows for each problem: truth, measurement, {', '.join(METHODS)}")


def measure(operator: Any, truth: Tensor, args: argparse.Namespace) -> Tensor:
    """The measurement of every image; an image's noise does not depend on the number of images."""
    clean = operator.apply(truth)
    source = sds.NormalSource(args.seed, range(len(truth)), clean.shape[1:])
    return clean + args.noise * source.draw(source.AUXILIARY).to(clean)


def report(found: Tensor, operator: Any, y: Tensor, truth: Tensor) -> str:
    """Peak signal-to-noise ratio against the truth, in dB, and the RMS difference from the measurement."""
    error = (found.clamp(-1, 1) - truth).square().mean((1, 2, 3))
    residual = (operator.apply(found) - y).square().mean().sqrt()
    return f"PSNR {float((10 * torch.log10(4 / error)).mean()):.1f} dB, residual {float(residual):.3f}"


# --- colour -----------------------------------------------------------------------------------------------------------

AXES = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
AXES = AXES / AXES.norm(dim=1, keepdim=True)
"""Orthonormal colour axes in (red, green, blue): grey, red-green, yellow-blue."""


def along_axes(x: Tensor) -> Tensor:
    """Convert (N, 3, H, W) from red, green and blue to coordinates along `AXES`."""
    return torch.einsum("kc,nchw->nkhw", AXES.to(x), x)


def from_axes(u: Tensor) -> Tensor:
    """The inverse of `along_axes`, its transpose."""
    return torch.einsum("kc,nkhw->nchw", AXES.to(u), u)


class Tinted(sds.Model):
    """Images of a grey model under coloured light: its image on the grey axis, smooth Gaussian fields on the others.

    The three coordinates are independent, and a rotation of the colours leaves the noise white. The score in these
    coordinates therefore consists of the scores of the three models; rotated back it is that of the coloured image.

    Args:
        garments: a model of (1, H, W) on a Gaussian process.
        std: standard deviation of the light's colour at a pixel.
        length: length in pixels over which the colour changes.
    """

    def __init__(self, garments: sds.Model, std: float = 0.25, length: float = 10.0) -> None:
        self.garments, (_, height, width) = garments, garments.shape
        self.process, self.prediction, self.dtype = garments.process, garments.prediction, garments.dtype
        self.shape, self.device, self.name = (3, height, width), garments.device, f"tinted {garments.name}"
        bound = 1.2 / math.sqrt(3)  # a grey value of 1 is 1/sqrt(3) in red, green and blue
        self.data_range = (-bound, bound)
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
        covariance = std**2 * torch.exp(-torch.cdist(places, places).square() / (2 * length**2))
        mean = torch.zeros(height * width)
        self.light = sds.GaussianModel(mean, covariance, garments.gaussian, prediction=self.prediction)

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor:
        """The prediction (N, 3, H, W), computed along the axes; the map is the same for every prediction type."""
        u = along_axes(x)
        grey = self.garments.predict(u[:, :1], t)
        colours = [self.light.predict(u[:, k].flatten(1), t).view(len(x), *self.shape[1:]) for k in (1, 2)]
        return from_axes(torch.cat([grey, torch.stack(colours, 1)], 1))

    def report(self, found: Tensor, operator: Any, y: Tensor, truth: Tensor) -> str:
        """The RMS residual, and the mean square of the colours relative to the exact posterior.

        The exact posterior of the colours is their prior. They are measured along the directions with at least 1 % of
        the largest variance, in units of the standard deviation. For samples of the posterior their mean square is 1,
        within the standard error that is printed.
        """
        variances, directions = torch.linalg.eigh(self.light.covariances[0])
        wide = variances > 0.01 * variances[-1]
        sizes = (along_axes(found)[:, 1:].flatten(2).double() @ directions[:, wide]).square() / variances[wide]
        residual = float((operator.apply(found) - y).square().mean().sqrt())
        error = math.sqrt(2 / sizes.numel())
        return f"residual {residual:.3f}, colours {float(sizes.mean()):.2f} (1 ± {error:.2f} if exact)"


if __name__ == "__main__":
    main()
