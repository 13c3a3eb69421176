"""The embedded network's solver tables compared with the best settings of other libraries, on starts nothing has seen.

    python studies/tuned_network.py peers [--blocks 16]       (an hour on one core; continues an interrupted run)
    python studies/tuned_network.py tables [--blocks 16]      (five minutes on one core)
    python studies/tuned_network.py frechet [--images 10000]  (an hour on one core; continues an interrupted run)
    python studies/tuned_network.py features [--blocks 16]    (five minutes on one core, after peers)
    python studies/tuned_network.py report --out studies/results

`peers` and `tables`: distances from the solution of the probability-flow ODE, in blocks of 64 starts, for the other
libraries' best settings at each number of evaluations in results/work_precision.md, by either measure, and for the
tables that the model ships. `frechet`: features of samples from the same starts, beside `edm` at 35 evaluations.
`features`: the Fréchet distance from the ODE's solutions, also in features that no table was tuned with.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import work_precision as wp  # adds benchmarks/ to sys.path
from problems import cached, network_problem
from torch import Tensor

import sdesamplers as sds
from sdesamplers.metrics.distances import frechet_distance, gaussian_statistics
from sdesamplers.metrics.scorer import Scorer
from sdesamplers.path.noise import START, NormalSource

SEED, BLOCK = 20261201, 64
REFERENCE: dict[str, Any] = {"sampler": "exp-ab", "spacing": "logsnr", "nfe": 256}
"""On 24 starts within 0.0003 (median) and 0.001 (RMS) of `problems.network_truth`, which takes 933 evaluations."""
LAST = "diffusers: UniPCMultistep {} final_sigmas_type=sigma_min"
PEERS: dict[int, tuple[str, ...]] = {
    5: (LAST.format("trailing"),),
    6: (LAST.format("linspace"),),
    8: (LAST.format("solver_order=1 solver_type=bh1 predict_x0=False linspace"),),
    10: ("azula: zEAB order=2 VP to sigma=0.003", "azula: zEAB order=4 VE to sigma=0.03"),
    15: ("azula: zEAB order=4 VE to sigma=0.03",),
    20: ("azula: zEAB order=4 VE to sigma=0.03",),
}
"""The best of 1,572 settings of diffusers, k-diffusion and azula, by RMSE and by median (results/work_precision.md)."""
BUDGETS = tuple(PEERS)
IMAGES, CHUNK = 10_000, 250
MEASURED: dict[str, tuple[str, int, dict[str, Any]]] = {
    "edm": ("edm", 35, {}),
    "tuned, 5": ("tuned", 5, {}),
    "tuned, 8": ("tuned", 8, {}),
    "best fixed, 5": ("abm", 5, {"order": 1, "spacing": "linspace", "final": "min", "coordinates": "flow"}),
    "best fixed, 8": ("ab-2m", 8, {"spacing": "power", "spacing_options": {"rho": 1.25}}),  # the former `quality`
    "dpmpp-2m, 5": ("dpmpp-2m", 5, {}),
    "dpmpp-2m, 8": ("dpmpp-2m", 8, {}),
}
"""Samplers whose Fréchet distance is measured, beside the best peer by RMSE at 5 and 8 evaluations."""
COMPARED = [name for name in MEASURED if name != "edm"]
"""Those that are compared with the ODE's solutions."""
PATCH, COMPONENTS, UNTRAINED = 7, 64, 3
MEASURED_PEERS = {f"best peer, {nfe}": (nfe, PEERS[nfe][0]) for nfe in (5, 8)}


def network() -> sds.Model:
    """The embedded network in the memory format in which it is fastest on a CPU."""
    return sds.load("fashion-mnist", channels_last=True)


def starts(block: int, model: sds.Model) -> Tensor:
    """The starts of a block, (BLOCK, 1, 28, 28)."""
    return torch.randn(BLOCK, *model.shape, generator=torch.Generator().manual_seed(SEED + block))


class Records:
    """Arrays of numbers by name and block, kept in a file of JSON lines."""

    def __init__(self, file: Path) -> None:
        self.file, self.found = file, dict[tuple[str, int], list[float]]()
        if file.exists():
            for line in file.read_text().splitlines():
                name, block, values = json.loads(line)
                self.found[name, block] = values

    def get(self, name: str, block: int, make: Callable[[], np.ndarray]) -> None:
        """Compute an entry unless it is there."""
        if (name, block) not in self.found:
            values = [wp.significant(float(value)) for value in make()]
            self.found[name, block] = values
            with self.file.open("a") as out:
                out.write(json.dumps([name, block, values]) + "\n")

    def whole(self) -> dict[str, np.ndarray]:
        """name -> the entries of all blocks, for names that have all of them."""
        names = dict.fromkeys(name for name, _ in self.found)
        blocks = sorted({block for _, block in self.found})
        return {
            name: np.concatenate([self.found[name, block] for block in blocks])
            for name in names
            if all((name, block) in self.found for block in blocks)
        }


def measure_peers(folder: Path, blocks: range) -> None:
    """Record the error of each sample of the other libraries."""
    model, records = network(), Records(folder / "errors.jsonl")
    peers = {setting.key: setting for setting in wp.peer_settings()}
    for block in blocks:
        problem = network_problem(model, starts(block, model), truth(folder, block, model))
        for nfe, keys in PEERS.items():
            for key in keys:
                records.get(f"{nfe}: {key}", block, lambda s=peers[key], nfe=nfe, p=problem: wp.errors(s, p, nfe)[0])
        print(f"block {block} done", flush=True)


def measure_tables(folder: Path, blocks: range) -> None:
    """Record the error of each sample of the model's solver tables."""
    model, records = network(), Records(folder / "errors.jsonl")

    def errors(nfe: int, block: int) -> np.ndarray:
        samples = sds.sample(model, "tuned", nfe=nfe, start=starts(block, model)).samples
        return distances(samples, truth(folder, block, model))

    for block in blocks:
        for nfe in BUDGETS:
            records.get(f"{nfe}: tuned", block, lambda nfe=nfe, block=block: errors(nfe, block))
        print(f"block {block} done", flush=True)


def truth(folder: Path, block: int, model: sds.Model) -> Tensor:
    """The solution of the probability-flow ODE from the starts of a block."""
    return cached(folder, f"truth-{block}", lambda: sds.sample(model, start=starts(block, model), **REFERENCE).samples)


def distances(samples: Tensor, truth: Tensor) -> np.ndarray:
    """The root-mean-square distance of each sample from the truth."""
    found: np.ndarray = (samples.double() - truth).flatten(1).square().mean(1).sqrt().numpy()
    return found


def measure_frechet(folder: Path, images: int) -> None:
    """Store the features of the samples of each sampler, in chunks."""
    model, scorer = network(), Scorer(model_metrics())
    peers = {setting.key: setting for setting in wp.peer_settings()}

    def peer(nfe: int, key: str, first: int) -> Tensor:
        start = NormalSource(SEED, list(range(first, first + CHUNK)), model.shape).draw(START)
        problem = network_problem(model, start, torch.zeros(0))
        steps = wp.planned_steps(peers[key], problem, nfe)
        found = None if steps is None else wp.attempt(peers[key], problem, steps, nfe)
        assert found is not None, key
        return found[0].float()

    def own(name: str, first: int) -> Tensor:
        sampler, nfe, arguments = MEASURED[name]
        run: dict[str, Any] = {"num_samples": CHUNK, "first_index": first, "seed": SEED, "batch_size": 50}
        return sds.sample(model, sampler, nfe=nfe, **run, **arguments).samples

    for first in range(0, images, CHUNK):
        for name in [*MEASURED, *MEASURED_PEERS]:
            file = features_file(folder, name, first)
            if not file.exists():
                samples = peer(*MEASURED_PEERS[name], first) if name in MEASURED_PEERS else own(name, first)
                np.save(file, scorer.features(samples))
        print(f"{first + CHUNK} samples done", flush=True)


def measure_features(folder: Path, blocks: range) -> None:
    """Store the samples of each sampler from the starts whose solutions are known."""
    model = network()
    for block in blocks:
        for name in COMPARED:
            sampler, nfe, arguments = MEASURED[name]
            run: dict[str, Any] = {"nfe": nfe, "start": starts(block, model), **arguments}
            cached(folder, f"samples-{stem(name)}-{block}", lambda s=sampler, r=run: sds.sample(model, s, **r).samples)
        print(f"block {block} done", flush=True)


Features = Callable[[Tensor], np.ndarray]


def compared_features(truth: Tensor) -> dict[str, list[Features]]:
    """Feature functions by their kind; a table's distance is the mean over those of a kind."""
    classifier = Scorer(model_metrics())
    axes = torch.linalg.svd((truth - truth.mean(0)).flatten(1), full_matrices=False)[2][:COMPONENTS].T
    untrained = []
    for seed in range(UNTRAINED):
        torch.manual_seed(seed)
        untrained.append(Scorer(model_metrics()))
        untrained[-1].net.apply(lambda part: getattr(part, "reset_parameters", lambda: None)())

    def contrast(images: Tensor) -> np.ndarray:
        patches = torch.nn.functional.unfold(images, PATCH, stride=PATCH)
        return np.asarray(patches.reshape(len(images), PATCH**2, -1).std(1).numpy())

    return {
        "classifier": [classifier.features],
        "untrained networks": [each.features for each in untrained],
        "contrast of patches": [contrast],
        "principal components": [lambda images: np.asarray((images.flatten(1) @ axes).numpy())],
    }


def features_rows(folder: Path) -> Iterator[str]:
    """The table of Fréchet distances from the solutions, in several features."""
    blocks = [k for k in range(10**3) if all((folder / f"samples-{stem(name)}-{k}.npy").exists() for name in COMPARED)]
    load = lambda name: torch.cat([torch.from_numpy(np.load(folder / f"{name}-{k}.npy")) for k in blocks]).float()  # noqa: E731
    truth = load("truth")
    kinds = compared_features(truth)
    yield f"## Fréchet distance from the ODE's solutions, {len(truth):,} samples"
    yield ""
    yield "In the features of the embedded classifier, with which the table for 5 was tuned, on other starts,"
    yield f"and in features with which none was: {UNTRAINED} networks of the same shape with random weights (the mean),"
    yield f"the standard deviations of {PATCH} x {PATCH} patches, and {COMPONENTS} principal components of the pixels."
    yield ""
    yield f"| sampler | NFE | {' | '.join(kinds)} |"
    yield f"|---|--:|{'--:|' * len(kinds)}"
    exact = {each: gaussian_statistics(each(truth)) for functions in kinds.values() for each in functions}
    for name in COMPARED:
        samples, cells = load(f"samples-{stem(name)}"), []
        for functions in kinds.values():
            found = [frechet_distance(gaussian_statistics(each(samples)), exact[each]) for each in functions]
            cells.append(f"{np.mean(found):.3g}")
        yield f"| {name.partition(',')[0]} | {MEASURED[name][1]} | {' | '.join(cells)} |"


def features_file(folder: Path, name: str, first: int) -> Path:
    """The file of the features of a chunk of samples."""
    return folder / f"features-{stem(name)}-{first}.npy"


def stem(name: str) -> str:
    """A sampler's name in the names of files."""
    return name.replace(", ", "-")


def model_metrics() -> Path:
    """The folder of the embedded classifier and the features of the real images."""
    return Path(sds.__file__).parent / "assets" / "fashion-mnist-metrics"


def rms(errors: np.ndarray) -> float:
    """The root mean square of the errors of all samples."""
    return float(np.sqrt(np.square(errors).mean()))


def resampled(one: np.ndarray, other: np.ndarray, measure: Callable[[np.ndarray], float]) -> str:
    """The ratio of a measure of two sets of errors on the same starts, with its 95% interval by resampling them."""
    chance, count = np.random.default_rng(0), len(one)
    rows = [chance.integers(count, size=count) for _ in range(2000)]
    low, high = np.quantile([measure(one[r]) / measure(other[r]) for r in rows], [0.025, 0.975])
    return f"{measure(one) / measure(other):.2f} [{low:.2f}, {high:.2f}]"


def error_rows(folder: Path) -> Iterator[str]:
    """The table of errors."""
    found = Records(folder / "errors.jsonl").whole()
    count = len(next(iter(found.values())))
    yield f"## Errors, {count:,} starts"
    yield ""
    yield "RMS and median over the starts of the root-mean-square distance from the ODE's solution. The best peer's RMS"
    yield "and median may be of two settings; a table is one for both. Ratios: 95 % intervals by resampling the starts."
    yield ""
    yield "| NFE | tuned: RMS / median | best peer: RMS / median | setting | ratio of RMS | ratio of medians |"
    yield "|--:|--:|--:|---|--:|--:|"
    median = lambda errors: float(np.median(errors))  # noqa: E731
    for nfe, keys in PEERS.items():
        tuned = found[f"{nfe}: tuned"]
        peers = {key: found[f"{nfe}: {key}"] for key in keys}
        by_rms, by_median = (min(peers, key=lambda key, m=m: m(peers[key])) for m in (rms, median))
        names = " / ".join(dict.fromkeys((by_rms, by_median)))
        yield (
            f"| {nfe} | {rms(tuned):.3g} / {median(tuned):.2g} | {rms(peers[by_rms]):.3g} / "
            f"{median(peers[by_median]):.2g} | {names} | {resampled(tuned, peers[by_rms], rms)} | "
            f"{resampled(tuned, peers[by_median], median)} |"
        )


def frechet_rows(folder: Path) -> Iterator[str]:
    """The table of Fréchet distances from the real test images."""
    scorer, features = Scorer(model_metrics()), dict[str, np.ndarray]()
    for name in [*MEASURED, *MEASURED_PEERS]:
        files = [file for first in range(0, 10**6, CHUNK) if (file := features_file(folder, name, first)).exists()]
        if files:
            features[name] = np.concatenate([np.load(file) for file in files])
    count = min(map(len, features.values()))
    yield f"## Fréchet distance, {count:,} samples from the same starts"
    yield ""
    yield "In the features of the embedded classifier, between the samples and the 10,000 real test images, and between"
    yield "the samples and those of `edm`."
    yield ""
    yield "| sampler | NFE | from the test images | ratio to edm | from edm's samples |"
    yield "|---|--:|--:|--:|--:|"
    reference = scorer.score_features(features["edm"][:count]).frechet
    edm = gaussian_statistics(features["edm"][:count])
    for name, values in features.items():
        own = scorer.score_features(values[:count]).frechet
        apart = frechet_distance(gaussian_statistics(values[:count]), edm)
        nfe = MEASURED_PEERS[name][0] if name in MEASURED_PEERS else MEASURED[name][1]
        yield f"| {name.partition(',')[0]} | {nfe} | {own:.4f} | {own / reference:.2f} | {apart:.4f} |"


def report(folder: Path) -> str:
    """The results in Markdown."""
    lines = ["# The embedded network's solver tables", "", "Written by `studies/tuned_network.py`.", ""]
    if (folder / "errors.jsonl").exists():
        lines += [*error_rows(folder), ""]
    if any(folder.glob("features-*.npy")):
        lines += [*frechet_rows(folder), ""]
    if any(folder.glob("samples-*.npy")):
        lines += [*features_rows(folder), ""]
    return "\n".join(lines)


def main() -> None:
    """Run one stage of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("peers", "tables", "frechet", "features", "report"))
    parser.add_argument("--work", type=Path, default=Path("out/tuned_network"))
    parser.add_argument("--out", type=Path, default=Path("out/tuned_network"))
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--images", type=int, default=IMAGES)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "peers":
        measure_peers(arguments.work, range(arguments.blocks))
    elif arguments.stage == "tables":
        measure_tables(arguments.work, range(arguments.blocks))
    elif arguments.stage == "frechet":
        measure_frechet(arguments.work, arguments.images)
    elif arguments.stage == "features":
        measure_features(arguments.work, range(arguments.blocks))
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "tuned_network.md").write_text(report(arguments.work), encoding="utf-8")


if __name__ == "__main__":
    main()
