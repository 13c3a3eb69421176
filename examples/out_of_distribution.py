"""Out-of-distribution detection: what the likelihood of a model of garments reveals of other images, and what not.

    python examples/out_of_distribution.py --images 32 --out out/ood

scores four kinds of images, all 28 x 28 with 256 grey levels, by the bits per dimension of the embedded model:

- test: Fashion-MNIST test images, which the model was not trained on;
- flipped: other test images, upside down;
- digits: scikit-learn's handwritten digits, enlarged from 8 x 8 to 28 x 28 (pip install scikit-learn);
- noise: every pixel uniform over the grey levels.

A model assigns few bits to likely images, so other images should get more bits. But images simpler than the data may
get fewer (Nalisnick et al. 2019). There are therefore three more scores, each larger for images less like the data: the
distance of the bits from the mean of the test images, leaving out the image itself (a typicality test, Nalisnick et al.
2019b); the bits minus those of the image's PNG file, a model-independent measure of its complexity (Serrà et al. 2020);
and the distance of the latent's mean square from 1, its value for noise. It writes bits.csv, auroc.csv and
out_of_distribution.png, the last with matplotlib (pip install "sdesamplers[report]").
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import sdesamplers as sds
from sdesamplers.io.datasets import read_data, scaled_to
from sdesamplers.io.images import to_bytes

SCORES = ("bits", "distance from the test mean", "bits less PNG", "latent's mean square")
COLOURS = {"test": "#35618f", "flipped": "#e08e0b", "digits": "#3a8f4f", "noise": "#c1272d"}


# --- pictures ---------------------------------------------------------------------------------------------------------


def garments(model: sds.Model, count: int, *, first: int = 0) -> np.ndarray:
    """`count` test images from number `first` on, uint8 (count, 28, 28)."""
    x, _ = read_data("fashion-mnist-test", model, limit=first + count)
    return to_bytes(x[first:], model.data_range)[..., 0]


def noise(count: int, seed: int) -> np.ndarray:
    """Independent uniform pixels."""
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def digits(count: int) -> np.ndarray:
    """scikit-learn's digits (17 levels, 8 x 8), enlarged to the model's size by bilinear interpolation."""
    from sklearn.datasets import load_digits

    small = np.round(load_digits().images[:count] * (255 / 16)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(d).resize((28, 28), Image.Resampling.BILINEAR)) for d in small])


def pictures(model: sds.Model, wanted: list[str], count: int, seed: int) -> dict[str, np.ndarray]:
    """The requested sets of images, the test images first."""
    create: dict[str, Callable[[], np.ndarray]] = {
        "test": lambda: garments(model, count),
        "flipped": lambda: garments(model, count, first=count)[:, ::-1].copy(),
        "digits": lambda: digits(count),
        "noise": lambda: noise(count, seed),
    }
    found = {}
    for name in ["test", *wanted]:
        try:
            found[name] = create[name]()
        except ImportError:
            print("digits are left out: they need scikit-learn (pip install scikit-learn)", file=sys.stderr)
    return found


# --- scores -----------------------------------------------------------------------------------------------------------


def png_bits(pixels: np.ndarray) -> np.ndarray:
    """Bits per pixel of the PNG file of each image, (N,)."""
    sizes = []
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG", optimize=True)
        sizes.append(8 * file.tell() / picture.size)
    return np.array(sizes)


def from_mean(bits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """|bits - mean of the reference|, (N,); an image of the reference itself is left out of its mean."""
    if bits is not reference:
        return np.abs(bits - reference.mean())
    return np.abs(bits - bits.mean()) * len(bits) / (len(bits) - 1)


def measure(
    model: sds.Model, sets: dict[str, np.ndarray], kwargs: dict[str, Any]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
    """(scores by set and name, number of evaluations by set)."""
    found: dict[str, dict[str, np.ndarray]] = {}
    evaluations = {}
    for name, pixels in sets.items():
        x = scaled_to(torch.from_numpy(pixels)[:, None], model)
        run = sds.log_likelihood(model, x, dequantize="uniform", **kwargs)
        evaluations[name] = run.nfe
        bits = run.bits_per_dim
        reference = found["test"]["bits"] if found else bits
        power = run.latents.double().square().flatten(1).mean(1).numpy()
        scale = float(model.gaussian.sigma(model.process.t_max)) ** 2
        values = (bits, from_mean(bits, reference), bits - png_bits(pixels), np.abs(power / scale - 1))
        found[name] = dict(zip(SCORES, values, strict=True))
    return found, evaluations


def auroc(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """The area under the ROC curve: the probability that an outside image scores higher than an inside one.

    Ties count half.

    Returns:
        (area, its standard error by Hanley & McNeil 1982, eqs. 1-2).
    """
    pairs = outside[:, None] - inside
    area = float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    above, below = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (len(outside) - 1) * (above - area**2) + (len(inside) - 1) * (below - area**2)
    return area, float(np.sqrt(max(spread, 0.0) / pairs.size))


# --- output -----------------------------------------------------------------------------------------------------------


def write_table(file: Path, header: list[str], rows: list[list[str]]) -> None:
    """Write a CSV file, and print the same table."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    widths = [max(len(line[k]) for line in [header, *rows]) for k in range(len(header))]
    for line in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()


def draw(found: dict[str, dict[str, np.ndarray]], sets: dict[str, np.ndarray], file: Path, run: str) -> None:
    """Plot four images of each set, and histograms of the likelihood and of the score of the latents.

    `run` says how they were measured.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.8), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 3.2])
    shown = left.subplots(len(sets), 1, squeeze=False)[:, 0]
    for axis, (name, pixels) in zip(shown, sets.items(), strict=True):
        axis.imshow(np.hstack(list(pixels[:4])), cmap="gray", vmin=0, vmax=255)
        axis.set_title(name, loc="left", fontsize=9, color=COLOURS[name], pad=2)
        axis.axis("off")
    titles = {
        "bits": "negative log-likelihood (bits per dimension)",
        "latent's mean square": "distance of the latent's mean square from 1",
    }
    for axis, (score, title) in zip(right.subplots(1, 2), titles.items(), strict=True):
        values = [scores[score] for scores in found.values()]
        edges = np.linspace(min(map(np.min, values)), max(map(np.max, values)), 29)
        for name, numbers in zip(found, values, strict=True):
            axis.hist(numbers, edges, color=COLOURS[name], alpha=0.2)
            axis.hist(numbers, edges, color=COLOURS[name], histtype="step", lw=1.6, label=name)
        axis.set(xlabel=title, ylabel="pictures")
        axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    count = len(next(iter(found.values()))["bits"])
    figure.suptitle(f"fashion-mnist: {count} pictures of each set, {run}", size="medium")
    figure.savefig(file)


def main() -> None:
    """Score the sets, print and write the tables, plot the histograms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="images in each set, at most 128")
    parser.add_argument(
        "--against", nargs="+", choices=list(COLOURS)[1:], default=list(COLOURS)[1:], help="sets to compare with"
    )
    parser.add_argument("--steps", type=int, default=25, help="steps of rk4, of four evaluations each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out_of_distribution"), help="folder for the results")
    args = parser.parse_args()
    if not 2 <= args.images <= 128:
        parser.error("--images must be from 2 to 128: of the 256 embedded images half are used upright, half flipped")

    model = sds.load("fashion-mnist")
    sets = pictures(model, args.against, args.images, args.seed)
    kwargs = {"sampler": "rk4", "steps": args.steps, "coordinates": "flow", "spacing": "logsnr", "seed": args.seed}
    found, evaluations = measure(model, sets, kwargs)
    args.out.mkdir(parents=True, exist_ok=True)
    root_n = args.images**0.5
    rows = [
        [name, *(f"{v.mean():.3f} ± {v.std(ddof=1) / root_n:.3f}" for v in scores.values()), str(evaluations[name])]
        for name, scores in found.items()
    ]
    write_table(args.out / "bits.csv", [f"mean of {args.images}", *SCORES, "NFE"], rows)
    rows = []
    for name in list(found)[1:]:
        areas = [auroc(found["test"][score], found[name][score]) for score in SCORES]
        rows.append([name, *(f"{area:.3f} ± {error:.3f}" for area, error in areas)])
    write_table(args.out / "auroc.csv", ["AUROC against test", *SCORES], rows)
    try:
        run = f"likelihood by rk4, {args.steps} steps, seed {args.seed}"
        draw(found, sets, args.out / "out_of_distribution.png", run)
    except ImportError:
        print("no picture without matplotlib: pip install 'sdesamplers[report]'", file=sys.stderr)


if __name__ == "__main__":
    main()
