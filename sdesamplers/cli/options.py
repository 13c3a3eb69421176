"""Options that several commands share, and their conversion to arguments of the library."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..registry.options import parse_option
from .conditions import Condition, once, resolve_conditions
from .places import placing_option

if TYPE_CHECKING:
    from ..models.base import Model
    from ..registry.names import Preset
    from ..registry.options import Option


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click alone
    """Comma-separated numbers."""

    name = "a,b,..."

    def __init__(self, kind: Callable[[str], Any]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a list of numbers; fail with the reason for any other text."""
        try:
            return [self.kind(part) for part in str(value).split(",")]
        except ValueError:
            numbers = "whole numbers" if self.kind is int else "numbers"
            self.fail(f"{value!r} is not a comma-separated list of {numbers}", param, ctx)


MODEL_OPTIONS = [
    click.option("--revision", help="Branch, tag or commit on the Hub."),
    click.option("--subfolder", help="Subfolder of the folder or repository that contains the model."),
    click.option("--variant", help="Weights variant, such as fp16."),
    click.option("--dtype", help="Dtype of the network: float32, bfloat16, float16 or float64."),
    click.option("--device", help="Device: cpu, cuda, cuda:1, mps; by default chosen by accelerate."),
    click.option("--size", type=int, help="Height and width in pixels; by default the model's."),
    click.option("--token", help="Hub token; by default that of your Hub login."),
    click.option("--cache-dir", type=click.Path(), help="Folder for downloads."),
    click.option("--local-files-only", is_flag=True, help="Never use the network."),
    click.option("--allow-pickle", is_flag=True, help="Allow pickled weights, which can execute code."),
    click.option("--zero-snr", is_flag=True, help="Rescale the noise schedule to zero terminal SNR (Lin et al. 2024)."),
    click.option("--no-clip", is_flag=True, help="Do not clip x0, even if the model's configuration enables it."),
    click.option(
        "--mixed-precision",
        type=click.Choice(["no", "bf16", "fp16"]),
        help="Run the network under autocast in this precision.",
    ),
    click.option("--compile", is_flag=True, help="Run the network through torch.compile."),
    click.option("--channels-last", is_flag=True, help="Store the network's weights in channels-last memory format."),
    click.option("--null-condition", type=int, help="Class label of the unconditional input, for guidance."),
    click.option(
        "--condition",
        type=Condition(),
        multiple=True,
        help="Class labels or other numbers, one for all samples or one per sample; or an .npy file with one row each.",
    ),
    click.option("--prompt", multiple=True, help="Text prompt; repeat for one per sample, in order."),
    click.option("--prompts", type=click.Path(), metavar="FILE", help="UTF-8 file of prompts, one line per sample."),
    click.option(
        "--negative-prompt",
        multiple=True,
        callback=once,
        help="Negative prompt for guidance, the same for all samples.",
    ),
    click.option(
        "--embedded-guidance",
        type=float,
        help="Guidance scale that the network itself takes as input (FLUX.1-dev, LCM).",
    ),
]


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for loading and conditioning a model."""
    command = with_resolved_conditions(command)
    for option in reversed(MODEL_OPTIONS):
        command = option(command)
    return command


def with_resolved_conditions(command: Callable[..., Any]) -> Callable[..., Any]:
    """Read and check prompts and conditions before the command runs."""

    @functools.wraps(command)
    def run(*arguments: Any, **kwargs: Any) -> Any:
        resolve_conditions(kwargs)
        return command(*arguments, **kwargs)

    return run


def load_model(source: str, kwargs: dict[str, Any]) -> tuple[Model, Any]:
    """Load a model with the options of `model_options`, which are removed from `kwargs`; return it and the condition.

    Several prompts are returned as the condition, so that each is counted, split and recorded with its sample.
    """
    from ..pretrained.loading import load

    keys = "revision subfolder variant dtype device size token cache_dir local_files_only allow_pickle mixed_precision"
    options = {
        key: kwargs.pop(key) for key in [*keys.split(), "null_condition", "zero_snr", "compile", "channels_last"]
    }
    options |= {key: kwargs.pop(key) for key in ("prompt", "negative_prompt", "embedded_guidance")}
    options["clip"] = False if kwargs.pop("no_clip") else None
    several = isinstance(options["prompt"], list)
    condition = kwargs.pop("condition")
    return load(source, **options), options["prompt"] if several else condition


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `sample` and `compare` share."""
    for option in reversed(
        [
            click.option("--spacing", help="Spacing of the time grid; see sdesamplers list."),
            click.option(
                "--spacing-option", multiple=True, metavar="KEY=VALUE", help="Option of the spacing; may be repeated."
            ),
            click.option("--coordinates", help="Coordinates of the solver: native, ve, flow or angle."),
            click.option("--final", help="End of the grid: zero is sigma = 0, min is the smallest trained sigma."),
            click.option("--noise", help="Noise source: independent, brownian, ...; see sdesamplers list."),
            click.option(
                "--noise-option",
                multiple=True,
                metavar="KEY=VALUE",
                help="Option of the noise source; may be repeated.",
            ),
            click.option(
                "--option", "-o", multiple=True, metavar="KEY=VALUE", help="Option of the sampler; may be repeated."
            ),
            click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers."),
            click.option("--out", type=click.Path(), default="out", show_default=True, help="Output folder."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
            click.option("--quiet", is_flag=True, help="Show no progress."),
        ]
    ):
        command = option(command)
    return command


def pairs(texts: tuple[str, ...], known: Mapping[str, Option], owner: str) -> dict[str, Any]:
    """Parse KEY=VALUE texts to options, checked against `known`."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"options must be given as KEY=VALUE, not {text!r}")
        with placing_option(text):
            name, found = parse_option(key, value, known, owner)
        values[name] = found
    return values


def take_grid_options(kwargs: dict[str, Any], preset: Preset | None = None) -> dict[str, Any]:
    """Remove the options of the grid and the noise from `kwargs`; return those given as arguments of `sample`.

    If --spacing or --noise is not given, --spacing-option and --noise-option apply to the preset's.
    """
    from ..registry.registry import default_registry

    texts, noise_texts = kwargs.pop("spacing_option"), kwargs.pop("noise_option", ())
    chosen = {k: v for k in ("spacing", "coordinates", "final", "noise") if (v := kwargs.pop(k, None)) is not None}
    if texts:
        name = chosen.get("spacing", preset and preset.spacing)
        if name is None:
            raise UsageError("--spacing-option requires --spacing")
        grid = default_registry().spacing(name)
        chosen["spacing_options"] = pairs(texts, grid.options, f"spacing {grid.name!r}")
    if noise_texts:
        name = chosen.get("noise", preset and preset.noise)
        if name is None:
            raise UsageError("--noise-option requires --noise")
        source, _ = default_registry().noise(name)
        chosen["noise_options"] = pairs(noise_texts, source.options, f"noise {source.name!r}")
    return chosen
