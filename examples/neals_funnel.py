"""Neal's funnel by Langevin dynamics, which fails in the neck of the funnel, and by the diffusion path, which does not.

    python examples/neals_funnel.py --out runs/neals-funnel

The density (Neal 2003, section 8) is v ~ N(0, s^2) and x_i | v ~ N(0, e^v): the width of x is e^{v/2}. The tables show

- a mild funnel (s = 1): ULA, whose bias decreases with the step, MALA, which has no bias, and underdamped Langevin;
- Neal's width (s = 3): the same samplers, and samplers of a diffusion model of the same density, whose score is exact
  because the noised density is a one-dimensional integral (`NoisedFunnel`);
- the diffusion path in ten dimensions, for several numbers of steps.

Every sample is the last state of a separate chain, so the samples are independent, and standard errors are those of the
same number of exact draws. neals_funnel.png shows the samples of the second table; it requires matplotlib,
pip install "sdesamplers[report]".
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sdesamplers as sds

# --- the noised density -----------------------------------------------------------------------------------------------


class NoisedFunnel(sds.Model):
    """The funnel of `sds.FunnelModel` noised by a Gaussian process: log-density, score and E[x0 | x_t], float64.

    With S = alpha^2 s^2 + sigma^2, the clean v given the noised one is u = alpha s^2 v / S + (s sigma / sqrt(S)) xi,
    xi ~ N(0, 1), and given u the noised x_i is N(0, alpha^2 e^u + sigma^2). So

        p_t(v, x) = N(v; 0, S) int N(xi; 0, 1) prod_i N(x_i; 0, alpha^2 e^u + sigma^2) d xi,

    computed by the trapezoidal rule, which converges exponentially for these integrands.

    Args:
        dimension: dimension of the funnel, v included.
        width: s.
        process: the Gaussian process; by default alpha = 1 and sigma from 1e-3 to 1e3, the range of e^{v/2}.
    """

    prediction = "sample"
    dtype = torch.float64
    name = "noised funnel"

    def __init__(self, dimension: int = 10, width: float = 3.0, process: sds.GaussianProcess | None = None) -> None:
        if dimension < 2 or width <= 0:
            raise sds.UsageError(f"the funnel needs dimension >= 2 and width > 0, not {dimension} and {width}")
        self.shape, self.width, self.others = (dimension,), width, dimension - 1
        self.process: sds.GaussianProcess = process or sds.EDM(1e-3, 1e3)
        # As a function of u the likelihood of x is about sqrt(2/others) wide. For states x_t that occur, xi is N(0, 1),
        # of which 1e-15 lie outside the nodes.
        spacing = min(0.125, 0.7 * math.sqrt(2 / self.others) / width)
        self.nodes = torch.linspace(-8, 8, 2 * math.ceil(8 / spacing) + 1, dtype=torch.float64)

    def _parts(self, x: Tensor, t: Any) -> tuple[Tensor, ...]:
        """alpha, sigma and S, each (N or 1, 1); u, the variance of x and the log of the integrand, each (N, nodes)."""
        alpha, sigma = (
            torch.as_tensor(f(t), dtype=torch.float64).reshape(-1, 1) for f in (self.process.alpha, self.process.sigma)
        )
        spread = (alpha * self.width) ** 2 + sigma**2
        u = alpha * self.width**2 / spread * x[:, :1] + self.width * sigma / spread.sqrt() * self.nodes
        variance = alpha**2 * torch.exp(u) + sigma**2
        squares = x[:, 1:].square().sum(1, keepdim=True)
        log = -0.5 * (self.nodes**2 + squares / variance + self.others * torch.log(variance))
        return alpha, sigma, spread, u, variance, log

    def log_prob(self, x: Tensor, t: Any) -> Tensor:
        """log p_t(x) in nats, (N,)."""
        _, _, spread, _, _, log = self._parts(x, t)
        outer = -0.5 * (x[:, :1] ** 2 / spread + torch.log(spread))
        constant = math.log(float(self.nodes[1] - self.nodes[0])) - 0.5 * (self.others + 2) * math.log(2 * math.pi)
        return outer[:, 0] + log.logsumexp(1) + constant

    def score(self, x: Tensor, t: Any) -> Tensor:
        """grad log p_t(x), (N, D); the variance of x depends on v through u, which contributes to the gradient in v."""
        alpha, _, spread, u, variance, log = self._parts(x, t)
        posterior, squares = log.softmax(1), x[:, 1:].square().sum(1, keepdim=True)
        d_log_du = 0.5 * (squares / variance - self.others) / variance * alpha**2 * torch.exp(u)
        du_dv = alpha * self.width**2 / spread
        score_v = -x[:, :1] / spread + du_dv * (posterior * d_log_du).sum(1, keepdim=True)
        return torch.cat([score_v, -x[:, 1:] * (posterior / variance).sum(1, keepdim=True)], 1)

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor:
        """E[x0 | x_t = x] = (x + sigma^2 score) / alpha, without the cancellation and the division of that formula."""
        alpha, _, _, u, variance, log = self._parts(x, t)
        posterior = log.softmax(1)
        shrink = alpha * (posterior * torch.exp(u) / variance).sum(1, keepdim=True)
        return torch.cat([(posterior * u).sum(1, keepdim=True), shrink * x[:, 1:]], 1)


# --- moments ----------------------------------------------------------------------------------------------------------


def exact(width: float, others: int) -> dict[str, tuple[float, float]]:
    """The exact mean and standard deviation of each quantity that `statistics` averages."""
    below = {k: 0.5 * math.erfc(k / math.sqrt(2)) for k in (1, 2)}
    return {
        "mean v": (0.0, width),
        "mean v²": (width**2, math.sqrt(2) * width**2),
        "mean x²/eᵛ": (1.0, math.sqrt(2 / others)),
        **{f"v < {-k * width:g}": (p, math.sqrt(p * (1 - p))) for k, p in below.items()},
    }


def statistics(samples: Tensor, width: float) -> dict[str, float]:
    """Means over the samples (N, D), v being the first coordinate; the last two are the fractions in the neck."""
    v, rest = samples[:, 0], samples[:, 1:]
    each = [v, v.square(), (rest.square() * torch.exp(-v[:, None])).mean(1), v < -width, v < -2 * width]
    names = exact(width, rest.shape[1])
    return {name: float(values.double().mean()) for name, values in zip(names, each, strict=True)}


def deviations(samples: Tensor, width: float) -> dict[str, float]:
    """The error of each mean, in standard errors of the same number of exact draws."""
    truth, root = exact(width, samples.shape[1] - 1), math.sqrt(len(samples))
    return {k: (found - truth[k][0]) / truth[k][1] * root for k, found in statistics(samples, width).items()}


# --- runs -------------------------------------------------------------------------------------------------------------

Row = tuple[str, sds.Result]


def langevin(sampler: str, step: float, steps: int, start: Tensor, width: float, seed: int, **options: Any) -> Row:
    """The last states of chains from `start`, of `steps` steps of size `step`."""
    model = sds.FunnelModel(start.shape[1], width, duration=step * steps)
    result = sds.sample(model, sampler, steps=steps, start=start, seed=seed, **options)
    return f"{sampler}, step {step:g}", result


def diffusion(sampler: str, steps: int, model: NoisedFunnel, count: int, seed: int, **options: Any) -> Row:
    """Samples by the diffusion path, on a grid with equal steps of log sigma."""
    settings = {"steps": steps, "spacing": "logsnr", "num_samples": count, "seed": seed, **options}
    unit = "levels" if "steps_per_level" in options else "steps"
    return f"{sampler}, {steps} {unit}", sds.sample(model, sampler, **settings)


def start_at_zero(count: int, dimension: int, seed: int) -> Tensor:
    """Starts with v = 0 and x ~ N(0, 1), so that the final distribution of v comes from the chain alone."""
    start = torch.randn(count, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    start[:, 0] = 0
    return start


def mild(args: argparse.Namespace) -> list[Row]:
    """Langevin samplers on a funnel that they can sample; MALA, which has no bias, for twice as long."""
    start = start_at_zero(args.chains, args.dimension, args.seed)
    runs = [("ula", 0.4, 1), ("ula", 0.2, 1), ("ula", 0.1, 1), ("ula", 0.05, 1), ("mala", 0.2, 2)]
    runs.append(("underdamped-langevin", 0.2, 1))  # with friction 1, the default
    return [
        langevin(name, step, round(longer * args.time / step), start, 1.0, args.seed) for name, step, longer in runs
    ]


def neals(args: argparse.Namespace) -> dict[str, Row]:
    """Neal's width in two dimensions, with all samplers: titles in the picture -> rows of the table."""
    start, model = start_at_zero(args.chains, 2, args.seed), NoisedFunnel(2)
    levels = {"steps_per_level": 12, "step_size": 0.5}
    return {
        "ULA": langevin("ula", 0.1, args.steps, start, 3.0, args.seed),
        "MALA": langevin("mala", 0.1, args.steps, start, 3.0, args.seed),
        "underdamped": langevin("underdamped-langevin", 0.05, args.steps, start, 3.0, args.seed, friction=2.0),
        "annealed Langevin": diffusion("annealed-langevin", 40, model, args.chains, args.seed, **levels),
        "diffusion ODE": diffusion("dpmpp-2m", 40, model, args.chains, args.seed),
    }


def by_steps(args: argparse.Namespace) -> list[Row]:
    """The diffusion path in more dimensions: the ODE and the reverse SDE, from the same starts."""
    model = NoisedFunnel(args.dimension)
    runs = [("dpmpp-2m", 10), ("dpmpp-2m", 20), ("dpmpp-2m", 40), ("dpmpp-2m", 80)]
    runs += [("ddpm", 25), ("ddpm", 50), ("ddpm", 100), ("dpmpp-2m-sde", 80)]
    return [diffusion(name, steps, model, args.chains, args.seed) for name, steps in runs]


def acceptance(step: float, v: Tensor, chains: int, seed: int) -> Tensor:
    """The fraction (K,) of MALA's proposals that is accepted at each level v (K,), with x drawn exactly."""
    normal = torch.randn(len(v), chains, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    start = torch.stack([v[:, None].expand_as(normal), normal * torch.exp(0.5 * v[:, None])], 2).flatten(0, 1)
    _, result = langevin("mala", step, 1, start, 3.0, seed)
    return (result.samples != start).any(1).double().view(len(v), chains).mean(1)


# --- tables and figures -----------------------------------------------------------------------------------------------


def show(console: Console, title: str, width: float, rows: list[Row]) -> None:
    """Print a row per run: means, with their errors in standard errors in brackets; in bold if the error exceeds 4."""
    samples = rows[0][1].samples
    truth = exact(width, samples.shape[1] - 1)
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("sampler", no_wrap=True)
    for name in ("evaluations", *truth):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("exact", "", *(f"{mean:.3f}" for mean, _ in truth.values()))
    errors = (f"{std / math.sqrt(len(samples)):.3f}" for _, std in truth.values())
    table.add_row(f"standard error of {len(samples)}", "", *errors, end_section=True)
    for label, result in rows:
        found, off = statistics(result.samples, width), deviations(result.samples, width)
        cells = [f"{found[k]:.3f} ({off[k]:+.1f})" for k in truth]
        marked = [f"[bold red]{cell}[/]" if abs(off[k]) > 4 else cell for k, cell in zip(truth, cells, strict=True)]
        table.add_row(label, str(result.nfe), *marked)
    console.print(table)


LANGEVIN = ("ULA", "MALA", "underdamped")
RED, BLUE, TOP = "#d62246", "#0b66c3", 10.5
VIEWS = ((14.0, -TOP, TOP), (0.6, -TOP, -2.5))  # (reach, low, high) of x and v: the whole funnel, and its neck


def scatter(plot: Any, samples: Tensor, colour: str, view: tuple[float, float, float]) -> None:
    """Plot samples over contours of the density, a factor of ten apart."""
    reach, low, high = view
    v, x = np.meshgrid(np.linspace(low, high, 400), np.linspace(-reach, reach, 401))
    points = torch.from_numpy(np.stack([v.ravel(), x.ravel()], 1))
    log = sds.FunnelModel(2, 3.0).log_prob(points).numpy().reshape(v.shape)
    plot.contour(x, v, log / math.log(10), levels=np.arange(-6, 2), colors="0.75", linewidths=0.7, linestyles="solid")
    plot.scatter(samples[:, 1], samples[:, 0], s=6, color=colour, alpha=0.5, linewidths=0)
    plot.set_xlim(-reach, reach)
    plot.set_ylim(low, high)


def draw(rows: dict[str, Row], exact_draws: Tensor, seed: int) -> Figure:
    """Plot the samples over the density, the same in the neck, v against N(0, 9), and MALA's acceptance rate."""
    columns = {"exact draws": (exact_draws, "", "black")} | {
        title: (result.samples, f"{result.nfe} evaluations", RED if title in LANGEVIN else BLUE)
        for title, (_, result) in rows.items()
    }
    figure = Figure(figsize=(2.6 * len(columns), 9.0), dpi=80, layout="constrained")
    plots = figure.subplots(3, len(columns), height_ratios=[1.5, 1.2, 1.0], squeeze=False)
    v = np.linspace(-TOP, TOP, 200)
    normal = np.exp(-0.5 * (v / 3) ** 2) / (3 * math.sqrt(2 * math.pi))
    for column, (title, (samples, cost, colour)) in enumerate(columns.items()):
        for plot, view in zip(plots[:, column], VIEWS, strict=False):
            scatter(plot, samples, colour, view)
            plot.set_ylabel("" if column else "v")
        plots[0][column].set_title(f"{title}\n{cost}", size=11)
        for row in (0, 1):
            plots[row][column].set_xlabel("x", size=9)
        if column:
            bottom = plots[2][column]
            bins = np.linspace(-TOP, TOP, 29)
            bottom.hist(samples[:, 0], bins=bins, density=True, color=colour, alpha=0.45, label="samples")
            bottom.plot(v, normal, color="black", linewidth=1.1, label="N(0, 9)")
            bottom.set(xlim=(-TOP, TOP), ylim=(0, 0.2))
            bottom.set_xlabel("v", size=9)
            bottom.set_ylabel("density of v" if column == 1 else "", size=9)
            bottom.legend(fontsize=8, frameon=False, loc="upper left")
    plots[1][0].set_title("the neck", size=10)
    draw_acceptance(plots[2][0], seed)
    figure.suptitle(
        f"Neal's funnel, s = 3, 2 dimensions: {len(exact_draws)} samples of each method, seed {seed} "
        "(lines: powers of ten of the density)"
    )
    return figure


def draw_acceptance(plot: Any, seed: int) -> None:
    """Plot the acceptance rate of MALA over v, for three step sizes."""
    levels = torch.linspace(-9, 9, 37, dtype=torch.float64)
    for step, shade in ((1.0, "0.7"), (0.1, RED), (0.01, "0.3")):
        plot.plot(levels, acceptance(step, levels, 60, seed), color=shade, linewidth=1.4, label=f"step {step:g}")
    plot.set_title("MALA: acceptance rate", size=10)
    plot.set_xlabel("v", size=9)
    plot.set_ylabel("share of proposals", size=9)
    plot.legend(fontsize=8, frameon=False, loc="lower right")


def main() -> None:
    """Run the samplers, print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=1000, help="number of chains, and of samples of each sampler")
    parser.add_argument("--steps", type=int, default=500, help="steps of the Langevin samplers on Neal's funnel")
    parser.add_argument("--time", type=float, default=40.0, help="duration of Langevin dynamics on the mild funnel")
    parser.add_argument(
        "--dimension", type=int, default=10, help="dimension of the funnel in the first and last tables"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/neals-funnel"))
    args = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 132)
    try:
        show(console, f"Mild funnel, s = 1, {args.dimension} dimensions", 1.0, mild(args))
        rows = neals(args)
        show(console, "Neal's funnel, s = 3, 2 dimensions", 3.0, list(rows.values()))
        show(console, f"Neal's funnel, s = 3, {args.dimension} dimensions", 3.0, by_steps(args))
    except sds.SdesamplersError as error:
        raise SystemExit(str(error)) from None
    args.out.mkdir(parents=True, exist_ok=True)
    exact_draws = sds.FunnelModel(2, 3.0).sample_data(args.chains, torch.Generator().manual_seed(args.seed))
    draw(rows, exact_draws, args.seed).savefig(args.out / "neals_funnel.png")
    print(f"picture in {args.out}")


if __name__ == "__main__":
    main()
