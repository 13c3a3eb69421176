"""The cost of `Scheduler.step` in a pipeline, compared with the diffusers scheduler of the same method.

    python benchmarks/scheduler.py --out benchmarks/results

Writes scheduler.md and scheduler.json; takes about a minute. Both run in the loop of a pipeline, with one
`scale_model_input` and one `step` per evaluation and a network that returns a constant tensor, alternating in one
process on one thread, with the latents of Stable Diffusion, (1, 4, 64, 64). `set_timesteps` is timed separately.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import torch
from overhead import in_turns, machine, spread

import sdesamplers as sds

SHAPE = (1, 4, 64, 64)
TABLE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
PAIRS: list[tuple[str, str, dict[str, Any]]] = [
    ("ddim", "DDIMScheduler", {}),
    ("euler", "EulerDiscreteScheduler", {}),
    ("heun", "HeunDiscreteScheduler", {}),
    ("dpm2", "KDPM2DiscreteScheduler", {}),
    ("lms", "LMSDiscreteScheduler", {}),
    ("plms", "PNDMScheduler", {"skip_prk_steps": True}),
    ("dpmpp-2m", "DPMSolverMultistepScheduler", {}),
    ("dpmpp-2s", "DPMSolverSinglestepScheduler", {}),
    ("unipc", "UniPCMultistepScheduler", {}),
    ("deis kind=logrho", "DEISMultistepScheduler", {}),
    ("euler flow", "FlowMatchEulerDiscreteScheduler", {}),
    ("heun flow", "FlowMatchHeunDiscreteScheduler", {}),
    ("ddpm", "DDPMScheduler", {}),
    ("lcm", "LCMScheduler", {}),
    ("tcd", "TCDScheduler", {}),
    ("euler-ancestral", "EulerAncestralDiscreteScheduler", {}),
    ("dpmpp-2m-sde", "DPMSolverMultistepScheduler", SDE),
    ("sa-solver", "SASolverScheduler", {}),
]
"""Our sampler, diffusers' scheduler and its options."""
LIMIT = 1 / 3


def made(name: str, kind: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """(our scheduler, diffusers' scheduler) for the same model."""
    sampler, *settings = name.split()
    config = {} if "flow" in settings else TABLE
    own = dict(item.split("=") for item in settings if "=" in item)
    theirs = getattr(diffusers, kind)(**config, **options)
    return sds.Scheduler.from_config({**config, "_class_name": kind}, sampler, **own), theirs


def loop(scheduler: Any, steps: int) -> tuple[Callable[[], None], Callable[[], None], list[int]]:
    """(function that sets the timesteps, function that runs the loop, list with the number of evaluations)."""
    start, output = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(k)) for k in range(2))
    scales, timesteps, count = hasattr(scheduler, "scale_model_input"), list[Any](), [0]

    def prepare() -> None:
        scheduler.set_timesteps(steps)
        timesteps[:] = list(scheduler.timesteps)
        count[0] = len(timesteps)

    def run() -> None:
        x = start * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for t in timesteps:
            if scales:
                scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x, return_dict=False)[0]

    return prepare, run, count


def measure(steps: int, repeats: int) -> list[dict[str, Any]]:
    """Microseconds per evaluation of each pair, and their ratio."""
    rows = []
    for name, kind, options in PAIRS:
        sides = dict(zip(("ours", "theirs"), (loop(s, steps) for s in made(name, kind, options)), strict=True))
        with torch.no_grad():
            prepared = {side: prepare for side, (prepare, _, _) in sides.items()}
            seconds = in_turns({side: run for side, (_, run, _) in sides.items()}, repeats, prepared)
            layout = in_turns(prepared, max(3, repeats // 5))
        found = {side: spread(seconds[side], sides[side][2][0]) for side in sides}
        medians = {side: spread(layout[side])["median"] for side in sides}
        ratio = found["ours"]["median"] / found["theirs"]["median"]
        rows.append({"sampler": name, "scheduler": kind, **found, "ratio": ratio, "layout": medians})
    return rows


def report(facts: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "# The cost of `Scheduler.step`\n",
        "Written by `python benchmarks/scheduler.py`. "
        + ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
        + f"; latents {SHAPE}, {facts['steps']} steps, {facts['repeats']} alternating rounds.\n",
        "Microseconds per evaluation without the network, `scale_model_input` and `step`, median [quartiles]; "
        "`set_timesteps` in milliseconds per run.\n",
        "| sampler | diffusers | ours | theirs | ratio | set_timesteps: ours, theirs |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in facts["rows"]:
        cells = [f"{row[s]['median']:.0f} [{row[s]['q25']:.0f}, {row[s]['q75']:.0f}]" for s in ("ours", "theirs")]
        layout = ", ".join(f"{row['layout'][side] / 1e3:.1f}" for side in ("ours", "theirs"))
        bold = "**" if row["ratio"] < LIMIT else ""
        names = f"{row['sampler']} | {row['scheduler']}"
        lines.append(f"| {names} | {cells[0]} | {cells[1]} | {bold}{row['ratio']:.2f}{bold} | {layout} |")
    lines += ["", NOTE, ""]
    return "\n".join(lines)


NOTE = """Ratios below a third are in bold. Two kinds of steps cannot reach this: the Euler step of a flow model is one
pass over the latents in either library, so both spend their time in that kernel; and stochastic steps are dominated by
the random numbers, which here are keyed by (seed, image, draw) so that an image does not depend on its batch.
`set_timesteps` takes longer because it computes all coefficients and points of the grid in float64."""


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    rows = measure(args.steps, args.repeats)
    facts = {"machine": machine(), "steps": args.steps, "repeats": args.repeats, "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scheduler.json").write_text(json.dumps(facts, indent=1) + "\n")
    text = report(facts)
    (args.out / "scheduler.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
