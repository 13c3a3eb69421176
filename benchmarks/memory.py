"""Peak memory of samplers in state tensors, compared with diffusers' schedulers and k-diffusion's functions.

    pip install -r benchmarks/requirements.txt
    python benchmarks/memory.py --out benchmarks/results

Writes memory.md and memory.json; takes half a minute. Every input and output tensor of an operation is counted until it
is freed. The numbers are therefore exact, the same on every machine, and independent of the allocator; memory used
inside an operation is not included. All libraries run the same model, which allocates one tensor, its output. This
tensor and the initial state are counted for all of them. k-diffusion is left out if it is not installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from machine import machine, sentence, target, write
from overhead import TABLE, k_diffusion_version
from torch import Tensor

import sdesamplers as sds
from sdesamplers.generation.memory import Meter
from sdesamplers.models.base import Output
from sdesamplers.processes.scalars import expand
from sdesamplers.sampling.arguments import make_recipe
from sdesamplers.sampling.loop import Evaluator
from sdesamplers.sampling.request import Request
from sdesamplers.sampling.runs import make_path, start_run
from sdesamplers.testing.case import StationaryModel

SHAPE, STEPS = (4, 4, 64, 64), 10
REQUIRED = ("euler", "heun", "dpmpp-2m")
UNSEEN = {"odeint": "its solver runs in a separate thread, which is not counted"}

DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm-solver-2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp-2s": ("DPMSolverSinglestepScheduler", {}),
    "dpmpp-3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpmpp-3s": ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "ipndm": ("IPNDMScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "pndm": ("PNDMScheduler", {}),
    "sa-solver": ("SASolverScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Sampler -> the diffusers scheduler of the same method, and its options."""

K_DIFFUSION = {
    "dpm-adaptive": "sample_dpm_adaptive",
    "dpm-fast": "sample_dpm_fast",
    "dpm2": "sample_dpm_2",
    "dpm2-ancestral": "sample_dpm_2_ancestral",
    "dpmpp-2m": "sample_dpmpp_2m",
    "dpmpp-2m-sde": "sample_dpmpp_2m_sde",
    "dpmpp-2s-ancestral": "sample_dpmpp_2s_ancestral",
    "dpmpp-3m-sde": "sample_dpmpp_3m_sde",
    "dpmpp-sde": "sample_dpmpp_sde",
    "euler": "sample_euler",
    "euler-ancestral": "sample_euler_ancestral",
    "heun": "sample_heun",
    "lms": "sample_lms",
}
"""Sampler -> k-diffusion's function of the same method."""
FREE = ("sample_dpm_fast", "sample_dpm_adaptive")
"""Functions that take the ends of the grid instead of the grid."""


def high_water(run: Callable[[], Any]) -> float:
    """Peak memory of a run, in state tensors."""
    with Meter(given=True) as count:
        run()
    return count.peak / (torch.Size(SHAPE).numel() * 4)


class Unit(sds.Model):
    """Standard normal data in a DDPM process, with epsilon = sigma(t) x: an exact model that allocates one tensor."""

    prediction, shape, name = "epsilon", SHAPE[1:], "unit normal"
    pure = True  # avoids defensive copies around the model, see docs/design.md

    def __init__(self) -> None:
        self.process = sds.DiscreteVP(diffusers.DDIMScheduler(**TABLE).alphas_cumprod.numpy())

    def predict(self, x: Tensor, t: Any, condition: Any = None) -> Tensor | Output:
        return x * expand(self.process.sigma(t), x)


def ours(name: str) -> None:
    """One run of a registered sampler with its defaults; those in `REQUIRED` with the settings of diffusers."""
    spec = sds.samplers()[name]
    model = StationaryModel(SHAPE[1:], torch.float32) if "stationary" in spec.needs else Unit()
    setting, kwargs = name, dict[str, Any]()
    if name in REQUIRED:
        setting, kwargs = f"diffusers:{DIFFUSERS[name][0]}", {"noise": "independent"}
    steps = None if spec.adaptive else STEPS
    recipe, spec = make_recipe(Request(setting, steps, **kwargs), process=model.process, shape=model.shape)
    source = sds.NormalSource(0, range(SHAPE[0]), SHAPE[1:])
    path = make_path(model.process, recipe, sds.IndependentNoise(source))
    scale = 1.0 if "stationary" in spec.needs else float(path.points[0].sigma)
    evaluator = Evaluator(model, SHAPE[0], name, both="unguided" in spec.needs)
    with torch.inference_mode():
        sds.drive(start_run(spec, torch.randn(SHAPE).mul_(scale), path, recipe.options), evaluator)


@torch.no_grad()
def theirs(name: str, options: dict[str, Any]) -> None:
    """One run of a diffusers scheduler, in the loop of a pipeline that keeps only the state."""
    scheduler = getattr(diffusers, name)(**TABLE if name != "IPNDMScheduler" else {}, **options)
    scheduler.set_timesteps(STEPS)
    x = torch.randn(SHAPE).mul_(float(scheduler.init_noise_sigma))
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t)
        x = scheduler.step(model_input * 0.5, t, x).prev_sample


def k_diffusion(name: str) -> None:
    """One run of a k-diffusion function, with the library's wrapper for DDPM models that predict epsilon."""
    from peers.k_diffusion_peer import K

    external = importlib.import_module("k_diffusion.external")
    table = diffusers.DDIMScheduler(**TABLE).alphas_cumprod
    denoiser = external.DiscreteEpsDDPMDenoiser(lambda x, t: x * 0.5, table, quantize=False)
    sigmas = denoiser.get_sigmas(STEPS)
    function = getattr(K, name)
    if name in FREE:
        low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
        last = (STEPS,) if name == "sample_dpm_fast" else ()
        function(denoiser, torch.randn(SHAPE).mul_(high), low, high, *last, disable=True)
        return
    kwargs: dict[str, Any] = {}
    if name.endswith("sde"):
        kwargs["noise_sampler"] = lambda *sigmas: torch.randn(
            SHAPE
        )  # independent noise as in ours, instead of a Brownian tree
    function(denoiser, torch.randn(SHAPE).mul_(float(sigmas[0])), sigmas, disable=True, **kwargs)


def measure(names: Sequence[str], with_k_diffusion: bool) -> list[dict[str, Any]]:
    """Peak memory of registered samplers, and of the other libraries' versions."""
    rows = []
    for name in names:
        row: dict[str, Any] = {"sampler": name, "ours": high_water(functools.partial(ours, name))}
        if name in DIFFUSERS:
            row["diffusers"] = high_water(functools.partial(theirs, *DIFFUSERS[name]))
        if name in K_DIFFUSION and with_k_diffusion:
            row["k-diffusion"] = high_water(functools.partial(k_diffusion, K_DIFFUSION[name]))
        rows.append(row)
    return rows


def best_peer(row: dict[str, Any]) -> float:
    """The smallest peak of the other libraries; infinite if there is none."""
    return min((row[peer] for peer in ("diffusers", "k-diffusion") if peer in row), default=float("inf"))


ROUNDING = 0.01
"""Differences up to this number of states are ignored: some libraries keep schedules and times as tensors."""


def targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The required bounds: no more than the best of the others, within `ROUNDING`."""
    return [
        target(f"{row['sampler']}: peak in states, against the best peer", row["ours"], best_peer(row) + ROUNDING)
        for row in rows
        if row["sampler"] in REQUIRED
    ]


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """A sentence on whether the targets were met, and on which other samplers need more memory than the best peer."""
    above = [row["sampler"] for row in rows if row["ours"] > best_peer(row) + ROUNDING]
    missed = [name for name in REQUIRED if name in above]
    outcome = f"missed by {', '.join(missed)}" if missed else "met"
    others = ", ".join(name for name in above if name not in REQUIRED) or "none"
    names = ", ".join(REQUIRED)
    return f"Required: {names} hold no more than the best peer: {outcome}. Other samplers that hold more: {others}."


def report(facts: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "# Memory",
        "",
        f"{sentence(facts['machine'])} Written by `python benchmarks/memory.py`.",
        "",
        f"Peak memory of a run of {STEPS} steps, in tensors of the size of the state (float32, {SHAPE}): the state, "
        "the model's input and output, the memory of the sampler and its temporary tensors. The first state is counted "
        "as long as the library keeps it. Our samplers run with their defaults on DDPM timesteps, except that "
        f"{', '.join(REQUIRED)} run with the settings of diffusers' schedulers; k-diffusion uses its own wrapper for "
        "models that predict epsilon.",
        "",
        "| sampler | ours | diffusers | k-diffusion | diffusers' scheduler |",
        "|---|--:|--:|--:|---|",
    ]
    for row in facts["rows"]:
        name = row["sampler"]
        numbers = [f"{row[side]:.1f}" if side in row else "" for side in ("ours", "diffusers", "k-diffusion")]
        kind, options = DIFFUSERS.get(name, ("", {}))
        options_text = ", ".join(f"{key}={value}" for key, value in options.items())
        lines.append(f"| {name} | {' | '.join(numbers)} | {kind}{f' ({options_text})' if options_text else ''} |")
    lines += ["", verdict(facts["rows"]), ""]
    lines += [f"Not measured: {name} ({why})." for name, why in UNSEEN.items()]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(REQUIRED)}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    diffusers.logging.set_verbosity_error()
    version = k_diffusion_version()
    names = REQUIRED if args.quick else [name for name in sds.samplers() if name not in UNSEEN]
    facts: dict[str, Any] = {"machine": machine(), "k_diffusion": version, "shape": SHAPE, "steps": STEPS}
    facts["rows"] = measure(names, version is not None)
    facts["targets"] = targets(facts["rows"])
    write(args.out, "memory", facts, report(facts))


if __name__ == "__main__":
    main()
