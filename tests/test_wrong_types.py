"""Every argument of every public function and class, given values of wrong types: it works, or a sentence says why not.

The arguments are read from the signatures, so that a new one is covered as soon as it is there.
"""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdesamplers as sds

SEED = 20250711
WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "nonsense",
    "empty text": lambda: "",
    "bytes": lambda: b"ab",
    "negative": lambda: -3,
    "zero": lambda: 0,
    "fraction": lambda: 0.5,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "huge": lambda: 10**30,
    "complex": lambda: 1 + 2j,
    "True": lambda: True,
    "list": lambda: [1, "a", None],
    "empty list": list,
    "tuple": lambda: (1, 2, 3),
    "dict": lambda: {"a": 1},
    "set": lambda: {1, 2},
    "object": object,
    "class": lambda: int,
    "function": lambda: lambda *a, **k: None,
    "tensor": lambda: torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "scalar tensor": lambda: torch.tensor(2),
    "array": lambda: np.array([1.0, 2.0]),
    "NumPy integer": lambda: np.int64(2),
    "NumPy float": lambda: np.float32(0.5),
    "NumPy truth": lambda: np.bool_(True),
    "NumPy text": lambda: np.str_("euler"),
}
LIMIT_COUNT = ("num_samples", "probes", "cache_dir")
"""Arguments for which a huge number is a request for as much memory or time, and no wrong type."""


CALLED = ("callback", "on_cell", "operator", "progress", "advance", "reward")
"""Arguments that are called: what a class makes of that is its own affair."""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of the test's own, since some texts are valid folders."""
    monkeypatch.chdir(tmp_path)


def mixture() -> sds.MixtureModel:
    return sds.grid_mixture(sds.VP())


def cases() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Public name -> (callable, arguments with which it works)."""
    model, x = mixture(), torch.zeros(2, 2)
    picture = sds.FunctionModel(lambda x, t: x, sds.VP(), "epsilon", (1, 4, 4), data_range=(-1.0, 1.0))
    result = sds.sample(model, "ddpm", steps=2, num_samples=2, log_probs=True)
    short = {"steps": 2}
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "sample": (sds.sample, {"model": model, "sampler": "euler", **short}),
        "steer": (
            sds.steer,
            {"model": model, "reward": lambda x, condition=None: x[:, 0], "sampler": "ddpm", "particles": 2, **short},
        ),
        "stream": (
            lambda **words: list(sds.stream(**words)),
            {"model": model, "sampler": "euler", "num_samples": 2, **short},
        ),
        "compare": (
            sds.compare,
            {"model": model, "samplers": "euler", "nfe": 2, "num_samples": 2, "reference_samples": 0},
        ),
        "encode": (sds.encode, {"model": model, "x": x, "sampler": "heun", **short}),
        "decode": (sds.decode, {"model": model, "latents": x, "sampler": "heun", **short}),
        "interpolate": (sds.interpolate, {"a": x[0] + 1, "b": x[0] - torch.tensor([0.0, 1.0]), "shares": [0.5]}),
        "log_likelihood": (sds.log_likelihood, {"model": model, "x": x, "sampler": "heun", **short}),
        "consistency_error": (sds.consistency_error, {"model": model, **short, "num_samples": 2}),
        "replay_log_probs": (sds.replay_log_probs, {"model": model, "result": result}),
        "load": (sds.load, {"source": "fashion-mnist"}),
        "noised": (sds.noised, {"model": model, "x": x, "time": 0.5}),
        "view": (sds.view, {"process": sds.VP(), "coordinates": "ve"}),
        "grid_mixture": (sds.grid_mixture, {"process": sds.VP()}),
        "GaussianModel": (sds.GaussianModel, {"mean": [0.0, 0.0], "covariance": 1.0, "process": sds.VP()}),
        "MixtureModel": (
            sds.MixtureModel,
            {"weights": [1.0], "means": [[0.0, 0.0]], "covariances": [1.0], "process": sds.VP()},
        ),
        "FunctionModel": (
            sds.FunctionModel,
            {"function": lambda x, t: x, "process": sds.VP(), "prediction": "epsilon", "shape": (2,)},
        ),
        "DensityModel": (sds.DensityModel, {"log_density": lambda x: x.sum(1), "shape": (2,)}),
        "FunnelModel": (sds.FunnelModel, {}),
        "Guided": (sds.Guided, {"model": model, "scale": 1.0}),
        "NormalSource": (sds.NormalSource, {"seed": 0, "indices": [0, 1], "shape": (2,)}),
        "register": (lambda items: sds.register(items), {"items": sds.samplers()["euler"]}),
        "use_registry": (sds.use_registry, {"file": None}),
        "Scheduler": (sds.Scheduler, {"sampler": "euler"}),
        "Mask": (sds.Mask, {"keep": torch.ones(1, 4, 4)}),
        "Downsample": (sds.Downsample, {"factor": 2}),
        "Matrix": (sds.Matrix, {"matrix": torch.eye(4)}),
        "PosteriorSampling": (
            sds.PosteriorSampling,
            {"model": picture, "operator": sds.Downsample(2), "y": torch.zeros(1, 2, 2), "method": "dps"},
        ),
    }
    for name in ("VP", "ConstantVP", "CosineVP", "SubVP", "VE", "EDM", "RectifiedFlow", "TrigFlow"):
        found[name] = (getattr(sds, name), {})
    found["ShiftedFlow"] = (sds.ShiftedFlow, {"shift": 2.0})
    found["DiscreteVP"] = (sds.DiscreteVP, {"alphas_cumprod": np.linspace(0.99, 0.1, 10)})
    return found


def arguments(name: str, function: Callable[..., Any]) -> list[str]:
    """The names of a callable's arguments."""
    public = getattr(sds, name, function)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(public).parameters.values() if p.kind in kinds] or ["items"]


def tries(name: str) -> Iterator[tuple[str, str]]:
    function, _ = cases()[name]
    for argument in arguments(name, function):
        for kind in WRONG:
            if not (argument in LIMIT_COUNT and kind == "huge") and not (argument in CALLED and kind == "class"):
                yield argument, kind


def verdict(function: Callable[..., Any], words: dict[str, Any], argument: str, value: Any) -> str | None:
    """What was wrong with how a call ended; None where it worked or was refused in a sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**{**words, argument: value})
    except sds.SdesamplersError as error:
        return None if str(error).strip() else "an empty message"
    except TypeError as error:
        return None if argument in str(error) and "argument" in str(error) else f"TypeError: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def faults(name: str, share: float) -> list[str]:
    function, words = cases()[name]
    draw = random.Random(f"{SEED} {name}")
    found = []
    for argument, kind in tries(name):
        if draw.random() < share and (wrong := verdict(function, words, argument, WRONG[kind]())):
            found.append(f"{name}({argument}={kind}): {' '.join(wrong.split())[:120]}")
    return found


@pytest.mark.parametrize("name", sorted(cases()))
def test_a_part_of_all_tries(name: str) -> None:
    assert faults(name, 0.02 if name == "load" else 0.08) == []  # each load that works reads a network


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(cases()))
def test_all_tries(name: str) -> None:
    assert faults(name, 1.0) == []
