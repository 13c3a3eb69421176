"""Solver tables for a guided network compared with the best settings of other libraries, on starts nothing has seen.

    python studies/guided_network.py run [--scales 2,4] [--starts 256]   (90 minutes on one core; continues a run)
    python studies/guided_network.py report --out studies/results

The model is the embedded class-conditional network with classifier-free guidance; the labels are 0 to 9 in turn.
First the settings of other libraries in `SCREENED` run from 64 starts; the best at each number of evaluations, by
RMS error and by median error, then run from further starts, as do the model's own tables and `fast` and `quality`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import work_precision as wp  # adds benchmarks/ to sys.path
from problems import CHUNK, Problem, cached
from torch import Tensor
from tuned_network import BLOCK, LAST, PEERS, SEED, Records, distances, resampled, rms

import sdesamplers as sds
from sdesamplers.models.output import Output

MODEL = "fashion-mnist-labels"
BUDGETS = (5, 6, 8, 10, 15, 20)
REFERENCE = {"sampler": "exp-ab", "spacing": "logsnr", "nfe": 160}
SCREENED = (
    *dict.fromkeys(key for keys in PEERS.values() for key in keys),
    "diffusers: DPMSolverMultistep linspace",
    "diffusers: DPMSolverMultistep trailing",
    "diffusers: DPMSolverMultistep trailing final_sigmas_type=sigma_min",
    "diffusers: DPMSolverMultistep karras_sigmas",
    LAST.format("karras_sigmas"),
    "diffusers: DEISMultistep linspace",
    "diffusers: DEISMultistep exponential_sigmas",
    "diffusers: DDIM trailing",
    "diffusers: HeunDiscrete karras_sigmas",
    "k-diffusion: dpmpp_2m karras",
    "k-diffusion: dpmpp_2m timesteps",
    "k-diffusion: dpmpp_2m_sde heun eta=0 polyexponential rho=1.3 sigma_min=0.1",
    "azula: vAB order=3 rectified to sigma=0.003",
    "azula: vAB order=3 VP to sigma=0.03",
    "azula: zEAB order=2 rectified to sigma=0.003",
    "azula: zEAB order=3 VE to sigma=0.03",
)
"""The winners of results/work_precision.md at up to 20 evaluations, and settings in common use."""


class Block:
    """64 starts with their labels, and the exact ends of the guided model's ODE."""

    def __init__(self, model: sds.Model, scale: float, index: int, folder: Path) -> None:
        self.model, self.scale, self.index = model, scale, index
        generator = torch.Generator().manual_seed(SEED + 1000 + index)
        self.start = torch.randn(BLOCK, *model.shape, generator=generator)
        self.labels = torch.arange(BLOCK) % 10
        self.truth = cached(folder, f"guided-{scale:g}-{index}", lambda: self.sample(**REFERENCE))

    def sample(self, sampler: str, **arguments: object) -> Tensor:
        """The samples of one of our samplers."""
        run = {"start": self.start, "condition": self.labels, "guidance_scale": self.scale}
        return sds.sample(self.model, sampler, **run, **arguments).samples

    def problem(self) -> Problem:
        """The same for other libraries."""
        guided, process = sds.Guided(self.model, self.scale), self.model.process
        condition = guided.condition_for(self.labels, BLOCK)

        def predict(x: Tensor, t: float) -> Tensor:
            parts = [
                guided.predict(x[k : k + CHUNK].float(), t, condition[k : k + CHUNK]) for k in range(0, len(x), CHUNK)
            ]
            return torch.cat([p.value if isinstance(p, Output) else p for p in parts]).to(x.dtype)

        assert isinstance(process, sds.DiscreteVP)
        return Problem(f"{MODEL}, guidance {self.scale:g}", process, predict, self.start, self.truth)


def measure(folder: Path, scale: float, blocks: int) -> None:
    """Record the error of each sample: of all settings for block 0, of the best and of ours for the others."""
    model = sds.load(MODEL, channels_last=True)
    records = Records(folder / f"errors-{scale:g}.jsonl")
    peers = {setting.key: setting for setting in wp.peer_settings() if setting.key in SCREENED}
    for index in range(blocks + 1):
        block = Block(model, scale, index, folder)
        for nfe in BUDGETS:
            for key in SCREENED if index == 0 else best(records, nfe):
                name = f"{nfe}: {key}"
                records.get(name, index, lambda k=key, n=nfe, b=block: peer_errors(peers[k], b, n))
            for own in () if index == 0 else ("tuned", "fast", "quality"):
                name = f"{nfe}: {own}"
                records.get(name, index, lambda o=own, n=nfe, b=block: distances(b.sample(o, nfe=n), b.truth))
        print(f"guidance {scale:g}: block {index} done", flush=True)


def peer_errors(setting: wp.Setting, block: Block, nfe: int) -> np.ndarray:
    """The error of each sample of another library's setting; infinite if it cannot run at this budget."""
    found = wp.errors(setting, block.problem(), nfe)
    return np.full(BLOCK, np.inf) if found is None else found[0]


def best(records: Records, nfe: int) -> list[str]:
    """The settings of the smallest RMS error and of the smallest median error in block 0."""
    screened = {key: np.array(records.found[f"{nfe}: {key}", 0]) for key in SCREENED}
    return list(dict.fromkeys(min(screened, key=lambda key, m=m: m(screened[key])) for m in (rms, median)))


def median(errors: np.ndarray) -> float:
    """The median of the errors of all samples."""
    return float(np.median(errors))


def rows(folder: Path, scale: float) -> Iterator[str]:
    """The table of one guidance scale."""
    records = Records(folder / f"errors-{scale:g}.jsonl")
    found: dict[str, list[float]] = {}
    for (name, block), values in records.found.items():
        if block > 0:
            found.setdefault(name, []).extend(values)
    count = max(map(len, found.values()))
    errors = {name: np.array(values) for name, values in found.items() if len(values) == count}
    yield f"## Guidance {scale:g}, {count:,} starts"
    yield ""
    yield "| NFE | tuned: RMS / median | `fast` | `quality` | best peer | setting | ratio of RMS | ratio of medians |"
    yield "|--:|--:|--:|--:|--:|---|--:|--:|"
    for nfe in BUDGETS:
        own = {name: errors[f"{nfe}: {name}"] for name in ("tuned", "fast", "quality")}
        peers = {key: errors[f"{nfe}: {key}"] for key in best(records, nfe)}
        by_rms, by_median = (min(peers, key=lambda key, m=m: m(peers[key])) for m in (rms, median))
        pairs = [f"{rms(each):.3g} / {median(each):.2g}" for each in own.values()]
        pairs.append(f"{rms(peers[by_rms]):.3g} / {median(peers[by_median]):.2g}")
        names = " / ".join(dict.fromkeys((by_rms, by_median)))
        ratios = [resampled(own["tuned"], peers[k], m) for k, m in ((by_rms, rms), (by_median, median))]
        yield f"| {nfe} | {' | '.join([*pairs, names, *ratios])} |"


def report(folder: Path, scales: list[float]) -> str:
    """The results in Markdown."""
    lines = [
        "# Solver tables of a guided network",
        "",
        "The embedded class-conditional network, labels 0 to 9 in turn. By `studies/guided_network.py`. RMS and",
        "median over the starts of the root-mean-square distance from the ODE's solution. Best peer: of the",
        f"{len(SCREENED)} settings of diffusers, k-diffusion and azula listed there, those that were best on {BLOCK}",
        "other starts; its RMS and median may be of two settings.",
        "Ratios: tuned to best peer, with 95 % intervals by resampling the starts.",
        "",
    ]
    for scale in scales:
        lines += [*rows(folder, scale), ""]
    return "\n".join(lines)


def main() -> None:
    """Run the study, or write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "report"))
    parser.add_argument("--scales", default="2,4", help="guidance scales")
    parser.add_argument("--starts", type=int, default=256)
    parser.add_argument("--work", type=Path, default=Path("out/guided_network"))
    parser.add_argument("--out", type=Path, default=Path("out/guided_network"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    scales = [float(scale) for scale in arguments.scales.split(",")]
    if arguments.stage == "report":
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "guided_network.md").write_text(report(arguments.work, scales), encoding="utf-8")
        return
    for scale in scales:
        measure(arguments.work, scale, arguments.starts // BLOCK)


if __name__ == "__main__":
    main()
