"""Compare the reverse SDE and the probability-flow ODE on two-dimensional data that a small network learns in seconds.

    python examples/toy_2d.py --data moons --out runs/toy-2d

trains a network for each of DDPM (VP), VE, sub-VP and rectified flow and writes for each

- NAME.png: the density over time, with paths of both from the same starts. The paths of the SDE are random and forget
  their start; those of the ODE are smooth and never cross; at every time both have the same distribution;
- NAME.gif: the same as an animation;

and samplers.png: samples of each model by several samplers. Requires matplotlib: pip install "sdesamplers[report]".
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import sdesamplers as sds
from sdesamplers import losses
from sdesamplers.metrics import sliced_wasserstein

# --- data -------------------------------------------------------------------------------------------------------------


def two_moons(count: int, rng: np.random.Generator) -> np.ndarray:
    """Two interleaved half circles."""
    angle, lower = rng.uniform(0, math.pi, count), rng.random(count) < 0.5
    upper_arc = np.stack([np.cos(angle), np.sin(angle)], 1)
    points = np.where(lower[:, None], np.array([1.0, 0.5]) - upper_arc, upper_arc)
    return points + 0.06 * rng.standard_normal((count, 2))


def swiss_roll(count: int, rng: np.random.Generator) -> np.ndarray:
    """A spiral of one and a half turns."""
    angle = 1.5 * math.pi * (1 + 2 * rng.random(count))
    return np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) + 0.3 * rng.standard_normal((count, 2))


def ring(count: int, rng: np.random.Generator) -> np.ndarray:
    """Eight round modes on a circle."""
    angle = 0.25 * math.pi * rng.integers(0, 8, count)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.08 * rng.standard_normal((count, 2))


DATA: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "moons": two_moons,
    "swiss-roll": swiss_roll,
    "ring": ring,
}


def make_data(name: str, count: int, seed: int = 0) -> Tensor:
    """Points (count, 2) float32, shifted and scaled to mean 0 and unit standard deviation."""
    exact = DATA[name](100_000, np.random.default_rng(12345))
    points = DATA[name](count, np.random.default_rng(seed))
    return torch.from_numpy((points - exact.mean(0)) / exact.std()).float()


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """How one kind of model is trained: its process, prediction type, loss weighting and distribution of times."""

    title: str
    process: sds.GaussianProcess
    prediction: str
    weighting: str
    times: losses.Times


# log(sigma/alpha) for data of unit size: details form around -1, and VP starts at 5.
WIDE = losses.LogNormalSigma(0.0, 2.0)
# In pure noise epsilon contains little information on x0, but v does; the objective is the same, that of DDPM.
SETUPS = {
    "ddpm": Setup("DDPM (VP)", sds.VP(), "v", "simple", WIDE),
    "ve": Setup("VE", sds.VE(0.01, 20.0), "epsilon", "simple", WIDE),
    "sub-vp": Setup("sub-VP", sds.SubVP(), "v", "simple", WIDE),
    "flow": Setup("rectified flow", sds.RectifiedFlow(), "flow", "flow", losses.LogitNormalTimes(-0.5, 1.2)),
}


class Net(nn.Module):
    """A multilayer perceptron of the state, scaled to about unit size, and of Fourier features of log(sigma/alpha)."""

    def __init__(self, process: sds.GaussianProcess, width: int = 128) -> None:
        super().__init__()
        self.process = process
        self.frequencies = 0.25 * 2.0 ** torch.arange(5)
        sizes = [2 + 2 * len(self.frequencies), width, width, width]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (torch.from_numpy(v) for v in self.process.schedule(t.flatten().double().numpy())[:2])
        level = (sigma / alpha).log().clamp(-7, 7).float()[:, None] * self.frequencies
        state = x / torch.hypot(alpha, sigma).float()[:, None]
        return self.body(torch.cat([state, level.sin(), level.cos()], 1))


def train(setup: Setup, data: Tensor, *, steps: int, batch: int = 512, seed: int = 0) -> sds.FunctionModel:
    """Train a network with `losses.denoising_loss`; return a model with its weights averaged over the last half."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = Net(setup.process)
    average = torch.optim.swa_utils.AveragedModel(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    settings: dict[str, Any] = {"prediction": setup.prediction, "weighting": setup.weighting, "times": setup.times}
    for step in range(steps):
        x0 = data[torch.randint(len(data), (batch,), generator=generator)]
        loss = losses.denoising_loss(net, setup.process, x0, generator=generator, **settings).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if 2 * step >= steps:
            average.update_parameters(net)
    return sds.FunctionModel(average.module, setup.process, setup.prediction, (2,), name=setup.title)


# --- pictures of the paths --------------------------------------------------------------------------------------------

SDE_COLOUR, ODE_COLOUR, SHADES = "#d62246", "#0b66c3", "Greys"
RUNS = {"reverse SDE": ("ddpm", SDE_COLOUR), "probability-flow ODE": ("dpmpp-2m", ODE_COLOUR)}
REACH = 2.6
TAIL = 25  # number of past points that are drawn behind a moving point


@dataclass
class Paths:
    """Paths of both kinds at K common points, with states divided by sqrt(alpha^2 + sigma^2) to fit one frame.

    Attributes:
        level: (K,), the noise level arctan(sigma/alpha) as a fraction of pi/2, 1 for noise and 0 for data.
        schedule: (K, 2), alpha and sigma, divided in the same way.
        states: (K, N, 2) for each kind.
    """

    level: np.ndarray
    schedule: np.ndarray
    states: dict[str, np.ndarray]


def paths(model: sds.Model, count: int, steps: int) -> Paths:
    """Run the reverse SDE and the ODE from the same starts, on a grid with equal steps of the noise level."""
    states = {}
    for kind, (sampler, _) in RUNS.items():
        settings: dict[str, Any] = {"steps": steps, "spacing": "angle", "num_samples": count, "seed": 1}
        trajectory = sds.sample(model, sampler, trajectory=True, **settings).trajectory
        assert trajectory is not None
        times = trajectory.times[:-1]
        alpha, sigma = (
            np.append(v, end) for v, end in zip(model.gaussian.schedule(times)[:2], (1.0, 0.0), strict=True)
        )
        size = np.hypot(alpha, sigma)
        states[kind] = trajectory.states.numpy() / size[:, None, None]
    return Paths(np.arctan2(sigma, alpha) / (0.5 * math.pi), np.stack([alpha, sigma], 1) / size[:, None], states)


def noised_density(data: np.ndarray, alpha: float, sigma: float, axis: np.ndarray) -> np.ndarray:
    """Kernel density estimate of alpha x0 + sigma eps on the grid axis x axis (rows: the second coordinate)."""
    width = math.hypot(sigma, 0.07 * alpha)
    across, up = (np.exp(-0.5 * ((axis[:, None] - alpha * data[:, k]) / width) ** 2) for k in (0, 1))
    return up @ across.T / (2 * math.pi * width**2 * len(data))


def density_over_time(data: np.ndarray, schedule: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """The density of the first coordinate at every level, (len(axis), K)."""
    columns = []
    for alpha, sigma in schedule:
        width = math.hypot(sigma, 0.05 * alpha)
        columns.append(np.exp(-0.5 * ((axis[:, None] - alpha * data[:, 0]) / width) ** 2).mean(1) / width)
    return np.stack(columns, 1)


def draw_over_time(plot: Any, found: Paths, picture: np.ndarray, kind: str, shown: int) -> list[Any]:
    """Plot the density of the first coordinate from noise (left) to data, with `shown` paths; return the lines."""
    plot.imshow(
        picture,
        extent=(1, 0, -REACH, REACH),
        origin="lower",
        aspect="auto",
        cmap=SHADES,
        vmax=1.3 * picture.max(),
    )
    values = found.states[kind][:, :shown, 0]
    lines = plot.plot(found.level, values, color=RUNS[kind][1], linewidth=1.1, alpha=0.9)
    plot.set_xlim(1, 0)
    plot.set_ylim(-REACH, REACH)
    plot.set_ylabel(kind, color=RUNS[kind][1], size=12, weight="bold")
    plot.set_xticks([1, 0.5, 0], ["1\nnoise", "0.5\n$\\sigma = \\alpha$", "0\ndata"])
    plot.set_yticks([])
    return lines


def level_grid(schedule: np.ndarray, count: int) -> np.ndarray:
    """alpha and sigma, (count, 2), at equally spaced noise levels."""
    angle = np.linspace(math.atan2(schedule[0, 1], schedule[0, 0]), 0, count)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def draw_paths(setup: Setup, found: Paths, data: np.ndarray) -> Figure:
    """Plot reverse SDE and ODE (rows): the first coordinate over time, then the plane at five times (columns)."""
    axis = np.linspace(-REACH, REACH, 160)
    over_time = density_over_time(data, level_grid(found.schedule, 240), axis)
    levels = (0.99, 0.75, 0.5, 0.25, 0.0)
    figure = Figure(figsize=(15.5, 6.4), dpi=80, layout="constrained")
    plots = figure.subplots(2, 1 + len(levels), width_ratios=[2.0] + [1.0] * len(levels), squeeze=False)
    for row, (kind, (_, colour)) in enumerate(RUNS.items()):
        draw_over_time(plots[row][0], found, over_time, kind, 14)
        for column, level in enumerate(levels, 1):
            at = int(np.abs(found.level - level).argmin())
            plot, picture = plots[row][column], noised_density(data, *found.schedule[at], axis)
            plot.imshow(picture, extent=(-REACH, REACH) * 2, origin="lower", cmap=SHADES, vmax=1.8 * picture.max())
            states = found.states[kind]
            for k in range(8):
                plot.plot(*states[max(0, at - TAIL) : at + 1, k].T, color=colour, linewidth=1.0, alpha=0.8)
            plot.scatter(*states[at, :500].T, s=3, color="black", alpha=0.4, linewidths=0)
            plot.scatter(*states[at, :8].T, s=26, color=colour, edgecolors="white", linewidths=0.8, zorder=3)
            bare(plot)
            if row == 0:
                plot.set_title("data" if level == 0 else f"noise level {level:g}", size=11)
                plots[1][column].set_xlabel("first coordinate", size=9)
            if column == 1:
                plot.set_ylabel("second coordinate", size=9)
    plots[0][0].set_title("first coordinate over time, same starts", size=11)
    plots[1][0].set_xlabel("noise level, arctan($\\sigma/\\alpha$) in units of $\\pi/2$", size=9)
    figure.suptitle(f"{setup.title}: two processes, one distribution at every time", size=14)
    legend_of_paths(figure, len(found.schedule) - 1)
    return figure


def legend_of_paths(figure: Figure, steps: int) -> None:
    """A legend below the figure: what is grey, black and coloured."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(color="0.6", label="density of the noised data"),
        Line2D([], [], color="black", marker=".", linestyle="", label="500 samples"),
    ]
    for kind, (_, colour) in RUNS.items():
        label = f"{kind}, {steps} steps: some of the samples with their last {TAIL} steps"
        handles.append(Line2D([], [], color=colour, marker="o", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def bare(plot: Any) -> None:
    """A square frame without ticks."""
    plot.set_xlim(-REACH, REACH)
    plot.set_ylim(-REACH, REACH)
    plot.set_xticks([])
    plot.set_yticks([])
    plot.set_aspect("equal")


def animate(setup: Setup, found: Paths, data: np.ndarray, frames: int) -> list[Image.Image]:
    """Frames from noise to data, for both kinds: the plane above, the first coordinate over time below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = Figure(figsize=(7.2, 6.4), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    plots = figure.subplots(2, 2, height_ratios=[1.5, 1.0])
    axis = np.linspace(-REACH, REACH, 110)
    over_time = density_over_time(data, level_grid(found.schedule, 200), axis)
    figure.suptitle(f"{setup.title}: same starts, same density, different paths", size=12)
    parts = []
    for column, (kind, (_, colour)) in enumerate(RUNS.items()):
        plot = plots[0][column]
        image = plot.imshow(np.zeros((110, 110)), extent=(-REACH, REACH) * 2, origin="lower", cmap=SHADES)
        tails = [plot.plot([], [], color=colour, linewidth=1.0, alpha=0.8)[0] for _ in range(8)]
        cloud = plot.scatter([], [], s=5, color="black", alpha=0.4, linewidths=0)
        heads = plot.scatter([], [], s=30, color=colour, edgecolors="white", linewidths=0.8, zorder=3)
        bare(plot)
        plot.set_title(kind, size=12, color=colour, weight="bold")
        lines = draw_over_time(plots[1][column], found, over_time, kind, 10)
        plots[1][column].set_ylabel("")
        parts.append(
            (kind, image, tails, cloud, heads, lines, plots[1][column].axvline(1, color="black", linewidth=0.8))
        )
    pictures = []
    for at in np.unique(np.linspace(0, len(found.level) - 1, frames).astype(int)):
        density = noised_density(data, *found.schedule[at], axis)
        for kind, image, tails, cloud, heads, lines, bar in parts:
            states = found.states[kind]
            image.set_data(density)
            image.set_clim(0, 1.8 * density.max())
            for k, tail in enumerate(tails):
                tail.set_data(*states[max(0, at - TAIL) : at + 1, k].T)
            cloud.set_offsets(states[at, :500])
            heads.set_offsets(states[at, :8])
            for k, line in enumerate(lines):
                line.set_data(found.level[: at + 1], states[: at + 1, k, 0])
            bar.set_xdata([found.level[at]] * 2)
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return pictures


def save_animation(pictures: list[Image.Image], file: Path) -> None:
    """Save a GIF that pauses at its end, with one palette of greys and of blends of both colours with grey."""
    greys = np.linspace(0, 255, 48)
    blends = [
        (1 - share) * grey + share * np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
        for colour in (SDE_COLOUR, ODE_COLOUR)
        for share in (0.35, 0.7, 1.0)
        for grey in (0, 128, 192, 255)
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([np.repeat(greys, 3), *blends]).astype(np.uint8).tobytes())
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [90] * (len(frames) - 1) + [2500]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=durations, loop=0)


# --- samplers side by side --------------------------------------------------------------------------------------------

SAMPLERS = (("euler-maruyama", 100), ("ddpm", 50), ("ddim", 20), ("heun", 10), ("dpmpp-2m", 20), ("quality", 20))


def draw_samplers(models: dict[str, sds.Model], test: Tensor, count: int) -> Figure:
    """Plot samples by model (rows) and sampler (columns), with their distances from new data and that of other data."""
    figure = Figure(figsize=(2.25 * (len(SAMPLERS) + 1), 2.45 * len(models) + 0.6), dpi=80, layout="constrained")
    plots = figure.subplots(len(models), len(SAMPLERS) + 1, squeeze=False)
    truth, other = test[:count].numpy(), test[count : 2 * count].numpy()
    for row, (name, model) in enumerate(models.items()):
        plots[row][0].scatter(*other.T, s=3, color="black", alpha=0.35, linewidths=0)
        plots[row][0].set_title(f"data: {sliced_wasserstein(other, truth):.3f}", size=10)
        plots[row][0].set_ylabel(SETUPS[name].title, size=12)
        for plot, (sampler, steps) in zip(plots[row][1:], SAMPLERS, strict=True):
            result = sds.sample(model, sampler, steps=steps, num_samples=count, seed=2)
            points = result.samples.numpy()
            colour = SDE_COLOUR if result.drew_noise else ODE_COLOUR
            plot.scatter(*points.T, s=3, color=colour, alpha=0.45, linewidths=0)
            plot.set_title(f"{sampler}, {result.nfe} NFE: {sliced_wasserstein(points, truth):.3f}", size=9)
        for plot in plots[row]:
            bare(plot)
    figure.suptitle(
        f"{count} samples, and their sliced Wasserstein distance in data units from {count} new data "
        "(black: other data; red: reverse SDE; blue: ODE)",
        size=12,
    )
    for plot in plots[-1]:
        plot.set_xlabel("first coordinate", size=9)
    return figure


def main() -> None:
    """Train, sample and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="moons")
    parser.add_argument("--models", default=",".join(SETUPS), help=f"comma-separated, from {', '.join(SETUPS)}")
    parser.add_argument("--steps", type=int, default=4000, help="training steps")
    parser.add_argument("--samples", type=int, default=2000, help="samples per model and sampler")
    parser.add_argument("--frames", type=int, default=50, help="frames of the animation; 0 for no animation")
    parser.add_argument("--out", type=Path, default=Path("runs/toy-2d"))
    args = parser.parse_args()
    chosen = args.models.split(",")
    for name in chosen:
        if name not in SETUPS:
            parser.error(f"unknown model {name!r} (known: {', '.join(SETUPS)})")
    args.out.mkdir(parents=True, exist_ok=True)
    data, test = make_data(args.data, 20_000), make_data(args.data, 2 * args.samples, seed=1)
    models: dict[str, sds.Model] = {}
    for name in chosen:
        begin = time.perf_counter()
        models[name] = train(SETUPS[name], data, steps=args.steps)
        print(f"{SETUPS[name].title}: trained in {time.perf_counter() - begin:.1f} s")
        found = paths(models[name], min(600, args.samples), 150)
        draw_paths(SETUPS[name], found, data[:3000].numpy()).savefig(args.out / f"{name}.png")
        if args.frames:
            save_animation(animate(SETUPS[name], found, data[:3000].numpy(), args.frames), args.out / f"{name}.gif")
    draw_samplers(models, test, args.samples).savefig(args.out / "samplers.png")
    print(f"pictures in {args.out}")


if __name__ == "__main__":
    main()
