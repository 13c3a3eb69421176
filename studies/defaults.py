"""The defaults `quality` and `fast` beside other settings, on problems that had no part in choosing any of them.

    python studies/defaults.py measure [--work out/defaults]  (20 minutes on one core; continues an interrupted run)
    python studies/defaults.py report --out studies/results

Distances from the end of the ODE: of mixtures and a Gaussian, by rk45 in float64 down to sigma = 0, whatever the
process's last sigma is; of networks, by 160 evaluations of UniPC, which ends with the estimate of x0 at the network's
first timestep. And how wide samples of a Gaussian of any width come out, from one run, which is linear there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import universal as family  # sets the number of threads
from torch import Tensor

import sdesamplers as sds
from sdesamplers.sampling.request import Request
from sdesamplers.tuning.field import Field, root_mean_square

SEED, FIRST, STARTS, NETWORK_STARTS, CHUNK = 17, 50_000, 256, 64, 16
BUDGETS, NETWORK_BUDGETS = (5, 10, 20, 50, 100), (5, 10, 20)
SETTINGS = {
    "quality": Request("quality"),
    "fast": Request("fast"),
    "ab-2m, native": Request("ab-2m", spacing="power", spacing_options={"rho": 1.25}, coordinates="native"),
    "dpmpp-2m, power": Request("dpmpp-2m", spacing="power"),
    "dpmpp-2m, karras": Request("dpmpp-2m", spacing="karras"),
    "unipc, power": Request("unipc", spacing="power"),
}
"""The third is `quality` as it was before."""
MIXTURES = ((5, 4, 1.0), (10, 7, 0.5), (20, 5, 1.5), (40, 9, 0.8), (80, 4, 0.6))
"""Dimension, components and scale."""
PROCESSES: dict[str, sds.GaussianProcess] = {
    **family.processes("ddpm"),
    "sub-VP": sds.SubVP(),
    "VE": sds.VE(),
    "EDM": sds.EDM(),
    "flow": sds.RectifiedFlow(),
    "flow, shift 3": sds.RectifiedFlow(3.0),
    "TrigFlow": sds.TrigFlow(),
}
WIDE: dict[str, sds.GaussianProcess] = {
    "VE to 348": sds.VE(0.01, 348.0),
    "EDM to 700": sds.EDM(0.002, 700.0),
    "VP, betas to 40": sds.VP(0.1, 40.0),
    "flow, shift 12": sds.RectifiedFlow(12.0),
}
"""Further processes on which the defaults must be stable."""
NETWORKS = {
    "network": ("fashion-mnist", 1.0),
    "labels, guidance 2": ("fashion-mnist-labels", 2.0),
    "labels, guidance 4": ("fashion-mnist-labels", 4.0),
}


def mixtures(process: sds.GaussianProcess) -> list[sds.Model]:
    """The mixtures and the Gaussian on a process."""
    found = [family.mixture(process, *sizes, seed=2) for sizes in MIXTURES]
    return [*found, family.spectrum(process, 0.05, 1.0, 12)]


def exact_ends(field: Field, twin: sds.Model) -> Tensor:
    """The solution from a field's starts, computed on the flow's process, which ends at sigma = 0 exactly."""
    ratio = math.tan(field.angle)
    time = ratio / (1 + ratio) if ratio < 1e6 else 1.0
    start = field.start.double() * math.hypot(1 - time, time)
    control = {"rtol": 1e-8, "atol": 1e-8, "max_nfe": 1_000_000}
    return sds.sample(twin, "rk45", start=start, start_time=time, dtype=torch.float64, **control).samples


Batch = tuple[Field, Tensor]
"""Starts and the exact ends."""


def problems() -> Iterator[tuple[str, str, Callable[[], list[Batch]]]]:
    """Group, problem, and a function that computes its batches."""
    twins = mixtures(sds.RectifiedFlow())
    for group, process in PROCESSES.items():
        for model, twin in zip(mixtures(process), twins, strict=True):
            yield group, model.name, partial(on_mixture, model, twin)
    for name, (model_name, scale) in NETWORKS.items():
        yield name, name, partial(on_network, sds.load(model_name, channels_last=True), scale)
    flow = family.network_on_flow().model
    yield "network on a flow", "network on a flow", partial(on_network, flow, 1.0)


def on_mixture(model: sds.Model, twin: sds.Model) -> list[Batch]:
    """One batch of starts of a mixture."""
    field = Field(model, range(FIRST, FIRST + STARTS), SEED)
    return [(field, exact_ends(field, twin))]


def on_network(model: sds.Model, scale: float) -> list[Batch]:
    """Batches of starts of a network, with labels 0 to 9 in turn if it is guided."""
    found = []
    for first in range(FIRST, FIRST + NETWORK_STARTS, CHUNK):
        labels = None if scale == 1 else model.condition_for([i % 10 for i in range(CHUNK)], CHUNK)
        field = Field(model, range(first, first + CHUNK), SEED, labels, scale)
        begins_with_noise = float(model.gaussian.alpha(model.gaussian.t_max)) == 0  # then there is no grid of log SNR
        accurate = Request("quality" if begins_with_noise else "unipc", spacing=None if begins_with_noise else "logsnr")
        found.append((field, field.run(replace(accurate, nfe=160))[0]))
    return found


Row = tuple[str, str, int, dict[str, tuple[float, float] | None]]
"""Group, problem, evaluations, and the RMS and median error of each setting."""


def measure(folder: Path) -> list[Row]:
    """The errors on all problems; rows that are stored are not measured again."""
    file = folder / "errors.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    known = {(group, name): rows for group, name, rows in map(json.loads, lines)}
    for group, name, make in problems():
        if (group, name) in known:
            continue
        batches, budgets = make(), BUDGETS if group in PROCESSES else NETWORK_BUDGETS
        rows = {str(nfe): {key: errors(batches, request, nfe) for key, request in SETTINGS.items()} for nfe in budgets}
        known[group, name] = rows
        with file.open("a") as out:
            out.write(json.dumps([group, name, rows]) + "\n")
        print(group, name, flush=True)
    return [(group, name, int(nfe), found) for (group, name), rows in known.items() for nfe, found in rows.items()]


def errors(batches: list[Batch], request: Request, nfe: int) -> tuple[float, float] | None:
    """RMS and median distance of a setting; None if the process does not have its grid."""
    found = []
    for field, ends in batches:
        try:
            found.append(root_mean_square(field.run(replace(request, nfe=nfe))[0].to(ends.dtype), ends))
        except sds.UsageError:
            return None
    distances = torch.cat(found)
    return float(distances.square().mean().sqrt()), float(distances.median())


SPREADS = np.array([0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0])


def widths(process: sds.GaussianProcess, sampler: str, steps: int) -> np.ndarray:
    """Standard deviations of samples of N(0, s^2) over s, at each s of SPREADS, from one run, which is linear."""
    model = sds.GaussianModel(np.zeros(len(SPREADS)), SPREADS**2, process, prediction="sample", dtype=torch.float64)
    alpha, sigma = (float(part) for part in (process.alpha(process.t_max), process.sigma(process.t_max)))
    start = torch.tensor(np.hypot(alpha * SPREADS, sigma))[None]
    return sds.sample(model, sampler, steps=steps, start=start).samples[0].numpy() / SPREADS


def accuracy(rows: list[Row]) -> list[str]:
    """Lines of the table of ratios to `quality`, and of that of its own errors on the networks."""
    groups = list(dict.fromkeys(group for group, *_ in rows))
    lines = [f"| group | setting | {' | '.join(map(str, BUDGETS))} |", "|---|---|" + "--:|" * len(BUDGETS)]
    for group in groups:
        for setting in list(SETTINGS)[1:]:
            cells = []
            for nfe in BUDGETS:
                own = [found for each, _, count, found in rows if (each, count) == (group, nfe)]
                pairs = [(found[setting], found["quality"]) for found in own]
                ratios = [np.log(one) - np.log(other) for one, other in pairs if one is not None and other is not None]
                means = np.exp(np.mean(ratios, axis=0)) if ratios else None
                cells.append("-" if means is None else f"{means[0]:.2f} / {means[1]:.2f}")
            if set(cells) != {"-"}:
                lines.append(f"| {group} | `{setting}` | {' | '.join(cells)} |")
    few = NETWORK_BUDGETS
    lines += ["", f"| problem | setting | {' | '.join(map(str, few))} |", "|---|---|" + "--:|" * len(few)]
    networks = dict.fromkeys(name for group, name, *_ in rows if group == name)
    for problem in networks:
        for setting in SETTINGS:
            found = {nfe: errors for _, name, nfe, errors in rows if name == problem}
            pairs = [found[nfe][setting] for nfe in few]
            if None not in pairs:
                cells = [f"{pair[0]:.2g} / {pair[1]:.2g}" for pair in pairs if pair is not None]
                lines.append(f"| {problem} | `{setting}` | {' | '.join(cells)} |")
    return lines


def stability() -> list[str]:
    """Lines of the table of the widths of samples."""
    lines = [
        "| process | `quality`: widest at 1 to 100 steps | at 20 steps | `fast`: widest | at 10 steps |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, process in {**PROCESSES, **WIDE}.items():
        cells = []
        for sampler, own in (("quality", 20), ("fast", 10)):
            found = {steps: widths(process, sampler, steps) for steps in range(1, 101)}
            common = found[own][SPREADS >= 0.25]
            cells += [f"{max(each.max() for each in found.values()):.2f}", f"{common.min():.2f} to {common.max():.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def report(rows: list[Row]) -> str:
    """The results in Markdown."""
    lines = [
        "# The defaults beside other settings",
        "",
        "Written by `studies/defaults.py`.",
        "",
        "## Accuracy",
        "",
        "RMS and median over the starts of the root-mean-square distance from the end of the ODE, divided by those of",
        f"`quality` with as many evaluations: geometric means over {len(MIXTURES)} mixtures and a Gaussian of",
        f"{MIXTURES[0][0]} to {MIXTURES[-1][0]} dimensions of {STARTS} starts each, and networks, {NETWORK_STARTS}",
        "starts. None of these problems or starts was used in choosing any of the settings. The second table has the",
        "errors themselves on the networks.",
        "",
        *accuracy(rows),
        "",
        "## Stability",
        "",
        "Standard deviation of samples of N(0, s^2), divided by s: the largest for s = 0.02 to 2, and the range for",
        "s = 0.25 to 2. 1 is right.",
        "",
        *stability(),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run one stage of the study."""
    arguments = family.command(__doc__, "measure", Path("out/defaults")).parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = measure(arguments.work)
    if arguments.stage == "report":
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "defaults.md").write_text(report(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
