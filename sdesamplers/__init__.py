"""sdesamplers: diffusion samplers, each one a plugin, for every diffusers model.

import sdesamplers as sds

model = sds.load("fashion-mnist")
result = sds.sample(model, "heun", steps=18, num_samples=16, seed=0)
result.images
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import former
from .public import lazily
from .version import __version__ as __version__

former.install()

_HOMES = {
    "comparison.comparison": ["compare"],
    "comparison.result": ["Comparison"],
    "errors": [
        "Cancelled",
        "ConversionError",
        "ModelError",
        "NonFiniteError",
        "PluginError",
        "SdesamplersError",
        "SolverError",
        "UnknownNameError",
        "UsageError",
    ],
    "generation": ["Generated", "generate", "stream"],
    "inverse": ["Downsample", "Grey", "LinearOperator", "Mask", "Matrix", "PosteriorSampling", "noised"],
    "models.analytic": ["GaussianModel", "MixtureModel", "grid_mixture"],
    "models.base": ["Model", "Output"],
    "models.clipping": ["Clip"],
    "models.density": ["DensityModel", "FunnelModel", "LangevinSDE"],
    "models.function": ["FlowMapModel", "FunctionModel"],
    "models.guidance": ["Guided"],
    "ode.consistency": ["Consistency", "consistency_error"],
    "ode.encoding": ["decode", "encode", "interpolate"],
    "ode.integration": ["Encoding"],
    "ode.likelihood": ["Likelihood", "log_likelihood"],
    "path.noise": ["BrownianNoise", "IndependentNoise", "NormalSource"],
    "path.path": ["Path"],
    "path.points": ["Point"],
    "path.prediction": ["Prediction"],
    "path.span": ["Span"],
    "pretrained.loading": ["load"],
    "pretrained.pipelines": ["PipelineModel", "from_pipeline"],
    "pretrained.wrapping": ["WrappedModel", "wrap"],
    "processes.check": ["check_process"],
    "processes.coordinates": ["View", "view"],
    "processes.predictions": ["PREDICTIONS", "convert", "weighted_sum"],
    "processes.reversal": ["reversed"],
    "processes.schedules": [
        "ConstantVP",
        "CosineVP",
        "EDM",
        "RectifiedFlow",
        "ShiftedFlow",
        "SubVP",
        "TrigFlow",
        "VE",
        "VP",
    ],
    "processes.sde": ["GaussianProcess", "Prior", "SDE"],
    "processes.table": ["DiscreteVP"],
    "registry.catalogue": ["Catalogue"],
    "registry.hooks": ["hookimpl"],
    "registry.plugin": ["NoiseSource", "Sampler", "Spacing", "noise_source", "sampler", "spacing"],
    "registry.registry": ["Registry", "default_registry", "register", "use_registry"],
    "sampling.calls": ["sample"],
    "sampling.loop": ["Evaluator", "Event", "Run", "drive"],
    "sampling.recipe": ["Recipe"],
    "sampling.replay": ["replay_log_probs"],
    "sampling.result": ["Result", "Trajectory"],
    "scheduler.scheduler": ["Scheduler"],
}
_MODULES = ("losses",)
_HOME = {name: module for module, names in _HOMES.items() for name in names}
# diffusers looks up its base class in a component's library to decide how the component is loaded.
_find = lazily(__name__, {**_HOMES, "scheduler.scheduler": ["Scheduler", "SchedulerMixin"]})
_PUBLIC = sorted([*_HOME, *_MODULES, "__version__", "noises", "samplers", "sdes", "spacings"])
__all__ = [name for name in _PUBLIC if name != "reversed"]  # `import *` must not hide Python's `reversed`

if TYPE_CHECKING:
    from .comparison.comparison import compare as compare
    from .comparison.result import Comparison as Comparison
    from .errors import Cancelled as Cancelled
    from .errors import ConversionError as ConversionError
    from .errors import ModelError as ModelError
    from .errors import NonFiniteError as NonFiniteError
    from .errors import PluginError as PluginError
    from .errors import SdesamplersError as SdesamplersError
    from .errors import SolverError as SolverError
    from .errors import UnknownNameError as UnknownNameError
    from .errors import UsageError as UsageError
    from .generation import Generated as Generated
    from .generation import generate as generate
    from .generation import stream as stream
    from .inverse import Downsample as Downsample
    from .inverse import Grey as Grey
    from .inverse import LinearOperator as LinearOperator
    from .inverse import Mask as Mask
    from .inverse import Matrix as Matrix
    from .inverse import PosteriorSampling as PosteriorSampling
    from .inverse import noised as noised
    from .models.analytic import GaussianModel as GaussianModel
    from .models.analytic import MixtureModel as MixtureModel
    from .models.analytic import grid_mixture as grid_mixture
    from .models.base import Model as Model
    from .models.base import Output as Output
    from .models.clipping import Clip as Clip
    from .models.density import DensityModel as DensityModel
    from .models.density import FunnelModel as FunnelModel
    from .models.density import LangevinSDE as LangevinSDE
    from .models.function import FlowMapModel as FlowMapModel
    from .models.function import FunctionModel as FunctionModel
    from .models.guidance import Guided as Guided
    from .ode.consistency import Consistency as Consistency
    from .ode.consistency import consistency_error as consistency_error
    from .ode.encoding import decode as decode
    from .ode.encoding import encode as encode
    from .ode.encoding import interpolate as interpolate
    from .ode.integration import Encoding as Encoding
    from .ode.likelihood import Likelihood as Likelihood
    from .ode.likelihood import log_likelihood as log_likelihood
    from .path.noise import BrownianNoise as BrownianNoise
    from .path.noise import IndependentNoise as IndependentNoise
    from .path.noise import NormalSource as NormalSource
    from .path.path import Path as Path
    from .path.points import Point as Point
    from .path.prediction import Prediction as Prediction
    from .path.span import Span as Span
    from .pretrained.loading import load as load
    from .pretrained.pipelines import PipelineModel as PipelineModel
    from .pretrained.pipelines import from_pipeline as from_pipeline
    from .pretrained.wrapping import WrappedModel as WrappedModel
    from .pretrained.wrapping import wrap as wrap
    from .processes.check import check_process as check_process
    from .processes.coordinates import View as View
    from .processes.coordinates import view as view
    from .processes.predictions import PREDICTIONS as PREDICTIONS
    from .processes.predictions import convert as convert
    from .processes.predictions import weighted_sum as weighted_sum
    from .processes.reversal import reversed as reversed
    from .processes.schedules import EDM as EDM
    from .processes.schedules import VE as VE
    from .processes.schedules import VP as VP
    from .processes.schedules import ConstantVP as ConstantVP
    from .processes.schedules import CosineVP as CosineVP
    from .processes.schedules import RectifiedFlow as RectifiedFlow
    from .processes.schedules import ShiftedFlow as ShiftedFlow
    from .processes.schedules import SubVP as SubVP
    from .processes.schedules import TrigFlow as TrigFlow
    from .processes.sde import SDE as SDE
    from .processes.sde import GaussianProcess as GaussianProcess
    from .processes.sde import Prior as Prior
    from .processes.table import DiscreteVP as DiscreteVP
    from .registry.catalogue import Catalogue as Catalogue
    from .registry.hooks import hookimpl as hookimpl
    from .registry.plugin import NoiseSource as NoiseSource
    from .registry.plugin import Sampler as Sampler
    from .registry.plugin import Spacing as Spacing
    from .registry.plugin import noise_source as noise_source
    from .registry.plugin import sampler as sampler
    from .registry.plugin import spacing as spacing
    from .registry.registry import Registry as Registry
    from .registry.registry import default_registry as default_registry
    from .registry.registry import register as register
    from .registry.registry import use_registry as use_registry
    from .sampling.calls import sample as sample
    from .sampling.loop import Evaluator as Evaluator
    from .sampling.loop import Event as Event
    from .sampling.loop import Run as Run
    from .sampling.loop import drive as drive
    from .sampling.recipe import Recipe as Recipe
    from .sampling.replay import replay_log_probs as replay_log_probs
    from .sampling.result import Result as Result
    from .sampling.result import Trajectory as Trajectory
    from .scheduler.scheduler import Scheduler as Scheduler


def samplers() -> dict[str, Sampler]:
    """Every registered sampler by name, with its order, options, plugin and reference."""
    from .registry.registry import default_registry  # keep `import sdesamplers` fast

    return dict(default_registry().samplers)


def spacings() -> dict[str, Spacing]:
    """Every registered spacing by name."""
    from .registry.registry import default_registry  # keep `import sdesamplers` fast

    return dict(default_registry().spacings)


def noises() -> dict[str, NoiseSource]:
    """Every registered noise source by name; `limits` describes how it changes the sampled distribution, if it does."""
    from .registry.registry import default_registry  # keep `import sdesamplers` fast

    return dict(default_registry().noises)


def sdes() -> dict[str, Any]:
    """Every process that a plugin has registered, by name: `SDE` classes or factories."""
    from .registry.registry import default_registry  # keep `import sdesamplers` fast

    return dict(default_registry().sdes)


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first used."""
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    value = globals()[name] = _find(name)
    return value


def __dir__() -> list[str]:
    return _PUBLIC
