"""What early 0.1 wrote, when every module had another name, goes on loading: pickles, and pipelines with our scheduler.

tests/data/written_by_0.1 was made by that code; its pickles name modules such as `sdesamplers.result`.
"""

from __future__ import annotations

import importlib
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tiny_models import save_pipeline, tiny_unet

import sdesamplers as sds
from sdesamplers.former import NEW_MODULES

FOLDER = Path(__file__).parent / "data" / "written_by_0.1"
PRIVATE = (b"sdesamplers.errors", b"sdesamplers.processes.coordinates", b"sdesamplers.scheduler.scheduler")
"""Modules of which pickles have names that are not public: how an error or a scheduler is read, a view's class."""
PICKLES = sorted(FOLDER.glob("*.pickle"))


def read(name: str) -> Any:
    return pickle.loads((FOLDER / f"{name}.pickle").read_bytes())


LOADING = """
import os, pickle, sys
import numpy, scipy.integrate, scipy.interpolate, scipy.optimize, scipy.special, scipy.stats, torch, yaml
# These take seconds; the package is imported by each process for itself.
for file in sys.argv[1:]:
    child = os.fork()
    if not child:
        code = 1
        try:
            print(file, type(pickle.loads(open(file, "rb").read())).__name__, flush=True)
            code = 0
        finally:
            os._exit(code)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, str]:
    """Pickle -> the type of what it loads as in a process that has imported nothing of the package; and all errors."""
    command = [sys.executable, "-c", LOADING, *map(str, PICKLES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return {"errors": done.stderr, **dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("file", PICKLES, ids=lambda file: file.stem)
def test_a_pickle_loads_in_a_fresh_process(loaded: dict[str, str], file: Path) -> None:
    assert loaded.get(str(file), "") not in ("", "NoneType"), loaded["errors"]


def test_a_result_is_what_it_was() -> None:
    result, model = read("result"), read("model")
    again = sds.sample(model, result.recipe, num_samples=2, seed=1, trajectory=True, log_probs=True)
    torch.testing.assert_close(result.samples, again.samples)
    torch.testing.assert_close(result.log_probs, again.log_probs)
    assert type(result) is sds.Result
    assert isinstance(result.recipe, sds.Recipe)


def test_processes_are_what_they_were() -> None:
    kinds = (sds.VP, sds.VE, sds.EDM, sds.ConstantVP, sds.CosineVP, sds.SubVP, sds.TrigFlow, sds.RectifiedFlow)
    processes = read("processes")
    assert [type(process) for process in processes] == [*kinds, sds.ShiftedFlow, sds.DiscreteVP]
    for kind, process in zip(kinds, processes, strict=False):
        t = 0.3 * kind().t_max
        assert (process.alpha(t), process.sigma(t)) == (kind().alpha(t), kind().sigma(t))
    np.testing.assert_allclose(np.square(processes[-1].alpha(np.arange(3.0))), [0.9, 0.5, 0.1], rtol=1e-6)


def test_registered_objects_and_errors() -> None:
    assert read("samplers") == [sds.samplers()["heun"], sds.spacings()["karras"], sds.noises()["brownian"]]
    kinds = [type(error) for error in read("errors")]
    assert kinds == [sds.UnknownNameError, sds.UsageError, sds.UnknownNameError]
    assert "did you mean 'heun'" in str(read("errors")[0])


def test_a_scheduler_goes_on() -> None:
    scheduler = read("scheduler")
    x = torch.ones(1, 1, 4, 4)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    assert torch.isfinite(x).all()


def test_what_is_written_now_names_the_package_alone() -> None:
    for name in ("result", "model", "recipe", "scheduler", "clip", "processes", "encoding", "likelihood", "errors"):
        modules = set(re.findall(rb"\bsdesamplers\.[.\w]+", pickle.dumps(read(name))))
        assert modules <= set(PRIVATE), name


@pytest.mark.parametrize("library", ["sdesamplers", "sdesamplers.scheduler"])
@pytest.mark.parametrize("made", ["then", "now"])
def test_a_pipeline_with_our_scheduler_loads(tmp_path: Path, library: str, made: str) -> None:
    """By `load`, `from_pipeline` and diffusers itself, and is sampled as the model that it is."""
    folder = tmp_path / "pipeline"
    if made == "then":
        shutil.copytree(FOLDER / "pipeline", folder)
    else:
        pipe = diffusers.DDPMPipeline(unet=tiny_unet(), scheduler=diffusers.DDPMScheduler())
        pipe.scheduler = sds.Scheduler.from_config(pipe.scheduler.config, "dpmpp-2m")
        pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["sdesamplers" if made == "now" else "sdesamplers.scheduler", "Scheduler"]
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": [library, "Scheduler"]}))
    pipe = diffusers.DDPMPipeline.from_pretrained(folder)
    assert isinstance(pipe.scheduler, sds.Scheduler)
    assert pipe.scheduler.config.sampler == "dpmpp-2m"
    plain = save_pipeline(tmp_path / "plain", unet=pipe.unet)
    words = {"steps": 3, "seed": 1, "num_samples": 2}
    expected = sds.sample(sds.load(plain), "ddim", **words).samples
    for model in (sds.load(folder), sds.from_pipeline(pipe)):
        torch.testing.assert_close(sds.sample(model, "ddim", **words).samples, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NEW_MODULES)
def test_a_module_under_its_former_name_has_its_names(name: str) -> None:
    there = importlib.import_module(f"sdesamplers.{name}")
    first = importlib.import_module(f"sdesamplers.{NEW_MODULES[name][0]}")
    names = [word for word, value in vars(first).items() if word[0] != "_" and not isinstance(value, ModuleType)]
    assert names
    assert all(getattr(there, word) is getattr(first, word) for word in names)
    with pytest.raises(AttributeError, match="no_such_name"):
        there.no_such_name  # noqa: B018


def test_a_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("sdesamplers.no_such_module")


def test_documented_modules_keep_their_names() -> None:
    from sdesamplers import coefficients
    from sdesamplers.path.points import added_noise_fraction

    assert coefficients.fresh_share is added_noise_fraction
