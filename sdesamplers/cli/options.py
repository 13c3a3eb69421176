"""Options that commands share, and what they mean in the library's words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..registry.options import unknown_option
from .conditions import Condition, once, resolve_conditions

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
        """Parse, or fail with what was wrong."""
        try:
            return [self.kind(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of {self.kind.__name__}s", param, ctx)


MODEL_OPTIONS = [
    click.option("--revision", help="Branch, tag or commit on the Hub."),
    click.option("--subfolder", help="Where the model lies inside the folder or repository."),
    click.option("--variant", help="Weights variant, such as fp16."),
    click.option("--dtype", help="Of the network: float32, bfloat16, float16 or float64."),
    click.option("--device", help="cpu, cuda, cuda:1, mps; accelerate's choice by default."),
    click.option("--size", type=int, help="Height and width in pixels, where not the model's own."),
    click.option("--token", help="Hub token; by default the one you logged in with."),
    click.option("--cache-dir", type=click.Path(), help="Where downloads are kept."),
    click.option("--local-files-only", is_flag=True, help="Never use the network."),
    click.option("--allow-pickle", is_flag=True, help="Also read pickled weights, which can run code."),
    click.option("--zero-snr", is_flag=True, help="Rescale the table to zero terminal SNR (Lin et al. 2024)."),
    click.option("--no-clip", is_flag=True, help="Leave x0 as it is, whatever the model's configuration says."),
    click.option("--mixed-precision", type=click.Choice(["no", "bf16", "fp16"]), help="Autocast."),
    click.option("--compile", is_flag=True, help="Run the network through torch.compile."),
    click.option("--channels-last", is_flag=True, help="Lay the network's weights out channels last."),
    click.option("--null-condition", type=int, help="The label that means no label, for guidance."),
    click.option(
        "--condition",
        type=Condition(),
        multiple=True,
        help="Class label or other number, one for all or one a sample; or an .npy file, one row a sample.",
    ),
    click.option("--prompt", multiple=True, help="For pipelines with text; repeat for one a sample, in their order."),
    click.option("--prompts", type=click.Path(), metavar="FILE", help="UTF-8, one prompt a line, one a sample."),
    click.option(
        "--negative-prompt",
        multiple=True,
        callback=once,
        help="What guidance leads away from, for all samples.",
    ),
    click.option("--embedded-guidance", type=float, help="The scale that FLUX.1-dev and LCM are told."),
]


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a model is loaded and conditioned."""
    command = with_resolved_conditions(command)
    for option in reversed(MODEL_OPTIONS):
        command = option(command)
    return command


def with_resolved_conditions(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose prompts and conditions are read before it begins."""

    @functools.wraps(command)
    def run(*arguments: Any, **kwargs: Any) -> Any:
        resolve_conditions(kwargs)
        return command(*arguments, **kwargs)

    return run


def load_model(source: str, kwargs: dict[str, Any]) -> tuple[Model, Any]:
    """Load with the options of `model_options`, which are taken out of `words`; the model and its condition.

    Several prompts are the condition itself, so that each is counted, cut and recorded with its sample.
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
    """The options that `sample` and `compare` share."""
    for option in reversed(
        [
            click.option("--spacing", help="Time grid; see sdesamplers list."),
            click.option("--spacing-option", multiple=True, metavar="KEY=VALUE", help="Option of the spacing; repeat."),
            click.option("--coordinates", help="native, ve, flow or angle."),
            click.option("--final", help="zero ends at sigma = 0, min at the smallest trained sigma."),
            click.option("--noise", help="independent, brownian or another noise source; see sdesamplers list."),
            click.option("--noise-option", multiple=True, metavar="KEY=VALUE", help="Option of the noise; repeat."),
            click.option("--option", "-o", multiple=True, metavar="KEY=VALUE", help="Option of the sampler; repeat."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--out", type=click.Path(), default="out", show_default=True, help="Folder for the results."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
            click.option("--quiet", is_flag=True, help="No progress."),
        ]
    ):
        command = option(command)
    return command


def pairs(texts: tuple[str, ...], known: Mapping[str, Option], owner: str) -> dict[str, Any]:
    """KEY=VALUE texts to checked options."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"options are given as KEY=VALUE, not {text!r}")
        if key not in known:
            raise unknown_option(key, known, owner)
        values[key] = known[key].parse(value, owner)
    return values


def take_grid_options(kwargs: dict[str, Any], preset: Preset | None = None) -> dict[str, Any]:
    """Take spacing, coordinates, final and noise out of `words`, as `sample` takes them; those not given are left out.

    Options of a spacing or noise source that is not given are for the preset's.
    """
    from ..registry.registry import default_registry

    texts, noise_texts = kwargs.pop("spacing_option"), kwargs.pop("noise_option", ())
    chosen = {k: v for k in ("spacing", "coordinates", "final", "noise") if (v := kwargs.pop(k, None)) is not None}
    if texts:
        name = chosen.get("spacing", preset and preset.spacing)
        if name is None:
            raise UsageError("--spacing-option needs --spacing")
        grid = default_registry().spacing(name)
        chosen["spacing_options"] = pairs(texts, grid.options, f"spacing {grid.name!r}")
    if noise_texts:
        name = chosen.get("noise", preset and preset.noise)
        if name is None:
            raise UsageError("--noise-option needs --noise")
        source, _ = default_registry().noise(name)
        chosen["noise_options"] = pairs(noise_texts, source.options, f"noise {source.name!r}")
    return chosen
