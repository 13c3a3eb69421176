"""A walk through the latents of a model: from garment to garment and back to the first, with all points decoded.

    python examples/latent_walk.py --out out/walk

encodes test images with the probability-flow ODE, interpolates along the great circle from each latent to the next, and
decodes the points. It writes latent_walk.png, with a row for each section and the decoded test images at its ends, and
latent_walk.gif, which repeats endlessly. It prints the distances of the decoded images from the test images: the walk
passes through them to within the error of the solver.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import sdesamplers as sds
from sdesamplers.io.datasets import read_data
from sdesamplers.io.images import to_images
from sdesamplers.io.sheets import Sheet


def walk(latents: Tensor, frames: int) -> Tensor:
    """A closed walk through latents (K, *shape): `frames` points per section, including its start but not its end.

    Returns:
        (K * frames, *shape).
    """
    fractions = torch.arange(frames) / frames
    sections = zip(latents, latents.roll(-1, 0), strict=True)
    return torch.cat([sds.interpolate(a, b, fractions) for a, b in sections])


def rows(pictures: list[Image.Image], frames: int) -> list[list[Image.Image]]:
    """The images of the walk in rows: each section, ending with the first image of the next."""
    starts = range(0, len(pictures), frames)
    return [[pictures[(first + k) % len(pictures)] for k in range(frames + 1)] for first in starts]


def animate(pictures: list[Image.Image], frames: int, file: Path) -> None:
    """An endless GIF that pauses at the start of each section."""
    big = [p.resize((5 * p.width, 5 * p.height), Image.Resampling.BICUBIC) for p in pictures]
    durations = [600 if k % frames == 0 else 80 for k in range(len(big))]
    big[0].save(file, save_all=True, append_images=big[1:], duration=durations, loop=0)


def main() -> None:
    """Encode, interpolate, decode, save the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-mnist", help="a model of 28 x 28 grey images")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 13, 30, 1], help="numbers of the test images")
    parser.add_argument("--frames", type=int, default=10, help="images per section of the walk")
    parser.add_argument("--sampler", default="heun", help="any ODE sampler with a fixed number of steps")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("latent_walk"), help="folder for the pictures")
    args = parser.parse_args()
    if len(args.images) < 2 or args.frames < 1:
        parser.error("a walk needs at least two --images and --frames of at least 1")

    model = sds.load(args.model)
    x, _ = read_data("fashion-mnist-test", model)
    if not all(0 <= k < len(x) for k in args.images):
        parser.error(f"--images are numbers from 0 to {len(x) - 1}")
    x = x[args.images]
    ode = {"sampler": args.sampler, "steps": args.steps, "coordinates": "flow"}
    encoding = sds.encode(model, x, **ode)
    points = walk(encoding.samples, args.frames)
    decoded = sds.decode(model, points, **ode)
    error = (decoded.samples[:: args.frames] - x).square().mean((1, 2, 3)).sqrt()
    print(f"{len(x)} latents, {encoding.nfe} evaluations each, standard deviation {float(encoding.samples.std()):.3f}")
    print(f"{len(points)} points decoded; RMS error at the test images {', '.join(f'{e:.4f}' for e in error)}")

    args.out.mkdir(parents=True, exist_ok=True)
    pictures = to_images(decoded.samples, decoded.data_range)
    ends = zip(args.images, [*args.images[1:], args.images[0]], strict=True)
    labels = [f"image {one} to {other}" for one, other in ends]
    note = f"{model.name}: {args.sampler} in flow coordinates, {encoding.nfe} NFE to encode, {decoded.nfe} to decode"
    sheet = Sheet.of_strips(list(zip(labels, rows(pictures, args.frames), strict=True)), note=note)
    sheet.save(args.out / "latent_walk.png")
    animate(pictures, args.frames, args.out / "latent_walk.gif")
    print(f"{args.out}: latent_walk.png, latent_walk.gif")


if __name__ == "__main__":
    main()
