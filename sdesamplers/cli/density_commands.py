"""Commands that integrate the probability-flow ODE from data to noise: likelihood, encode."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..text import one_line, printable
from .config import Configured
from .group import cli
from .options import load_model, model_options, pairs, take_grid_options
from .streams import say
from .tables import emit, show, styled, table

if TYPE_CHECKING:
    from ..ode.likelihood import Likelihood


def ode_options(sampler: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options for the data and for the ODE solver."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            [
                click.option("--sampler", default=sampler, show_default=True, help="Name of an ODE sampler."),
                click.option("--steps", type=int, help="Number of steps; not needed for adaptive samplers."),
                click.option("--nfe", type=int, help="Budget of model evaluations per sample, instead of --steps."),
                click.option("--spacing", help="Spacing of the time grid; see sdesamplers list."),
                click.option(
                    "--spacing-option",
                    multiple=True,
                    metavar="KEY=VALUE",
                    help="Option of the spacing; may be repeated.",
                ),
                click.option("--coordinates", help="Coordinates of the solver: native, ve, flow or angle."),
                click.option(
                    "--option", "-o", multiple=True, metavar="KEY=VALUE", help="Option of the sampler; may be repeated."
                ),
                click.option("--limit", type=int, metavar="N", help="Use only the first N samples of DATA."),
                click.option("--batch-size", type=int, default=64, show_default=True, help="Samples per batch."),
                click.option("--out", type=click.Path(), default="out", show_default=True, help="Output folder."),
                click.option("--json", "as_json", is_flag=True, help="Print JSON."),
                click.option("--quiet", is_flag=True, help="Show no progress."),
            ]
        ):
            command = option(command)
        return command

    return decorate


def prepared(source: str, data: str, kwargs: dict[str, Any]) -> tuple[Any, Any, list[str], dict[str, Any]]:
    """Load the model and the data; return them, the names of the samples, and the keyword arguments for the ODE."""
    from ..checks import whole
    from ..io.datasets import read_data
    from ..registry.registry import default_registry

    preset = default_registry().resolve(kwargs["sampler"])
    options = pairs(kwargs.pop("option"), preset.sampler.options, f"sampler {preset.sampler.name!r}")
    options |= take_grid_options(kwargs, preset)
    limit = kwargs.pop("limit")
    for name, value in (("limit", limit), ("batch_size", kwargs["batch_size"])):
        if value is not None:
            whole(name, value)
    model, condition = load_model(source, kwargs)
    x, names = read_data(data, model, limit=limit)
    return model, x, names, {**kwargs, **options, "condition": condition}


@cli.command(cls=Configured)
@click.argument("source", metavar="MODEL")
@click.argument("data", metavar="DATA")
@ode_options("rk45")
@click.option(
    "--divergence",
    type=click.Choice(["hutchinson", "exact"]),
    help="Estimate the divergence with random probes, or compute it exactly, as by default in up to 16 dimensions.",
)
@click.option("--probes", type=int, help="Random probes per sample for the divergence; 1 by default.")
@click.option(
    "--probe",
    type=click.Choice(["rademacher", "gaussian"]),
    default="rademacher",
    show_default=True,
    help="Distribution of the probes.",
)
@click.option(
    "--dequantize/--no-dequantize",
    default=True,
    show_default=True,
    help="Add uniform noise of one level's width to the data.",
)
@click.option(
    "--levels", type=int, default=256, show_default=True, help="Number of levels of the data; 0 for continuous data."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the probes and the dequantization.")
@model_options
def likelihood(source: str, data: str, **kwargs: Any) -> None:
    """Compute log-likelihoods of DATA under MODEL.

    Integrates the probability-flow ODE. Prints the mean in bits per dimension, and writes a CSV file and a histogram.

    DATA is a folder or file of pictures, a folder that `sample` has written as safetensors or png, an .npy or
    .safetensors file, or fashion-mnist-test, an embedded data set.
    """
    from ..io.files import output_folder
    from ..io.terminal import counting_bar
    from ..ode.likelihood import log_likelihood

    out, as_json = kwargs.pop("out"), kwargs.pop("as_json")
    silent = kwargs.pop("quiet") or as_json or not sys.stderr.isatty()
    dequantize = kwargs.pop("dequantize")
    model, x, names, kwargs = prepared(source, data, kwargs)
    kwargs["dequantize"] = "uniform" if dequantize and kwargs["levels"] and model.data_range is not None else None
    with output_folder(out) as folder:
        bar = nullcontext(None) if silent else counting_bar(f"likelihood under {model.name}", len(x), "samples")
        with bar as advance:
            found = log_likelihood(model, x, **kwargs, advance=advance)
        files = [write_csv(found, names, folder), write_histogram(found, f"{data} under {model.name}", folder)]
    bits, count = found.bits_per_dim, len(x)
    spread = float(bits.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    facts = {"model": model.name, "revision": model.revision, "images": count, "bits_per_dim": float(bits.mean())}
    facts |= {"standard_error": spread, "nats": float(found.nats.mean()), "nfe": found.nfe}
    if found.standard_error is not None:
        facts["standard_error_of_probes"] = float(found.standard_error.mean() / (math.log(2) * math.prod(model.shape)))
    if as_json:
        emit({**facts, "recipe": found.recipe.as_dict(), "files": [str(file) for file in files if file]})
        return
    made = table("", "", "")
    made.show_header = False
    spread_of = f" ± {spread:.4f} (standard error over {count} samples)"
    made.add_row("bits/dim", styled(f"{bits.mean():.4f}", "bold").append(spread_of, "not bold"))
    made.add_row("nats", f"{found.nats.mean():.1f}")
    if found.standard_error is not None:
        error = facts["standard_error_of_probes"]
        made.add_row("divergence", f"{found.probes} probes: standard error {error:.4f} bits/dim per sample")
    else:
        made.add_row("divergence", "1 probe: --probes 2 estimates its error" if found.probes else "exact")
    made.add_row("evaluations", f"{found.nfe_per_sample.mean():.0f} per sample on average, {found.nfe} at most")
    show(made)
    for file in filter(None, files):
        say(f"  {file}")


def write_csv(found: Likelihood, names: list[str], folder: Path) -> Path:
    """Write a CSV file with a line for each sample."""
    from ..io.files import write

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["name", "nats", "bits_per_dim", "standard_error_nats", "nfe"])
    errors = found.standard_error if found.standard_error is not None else [""] * len(names)
    for line in zip(names, found.nats, found.bits_per_dim, errors, found.nfe_per_sample, strict=True):
        rows.writerow([value if isinstance(value, str) else f"{value:.8g}" for value in line])
    return write(folder / "likelihood.csv", text.getvalue())


def write_histogram(found: Likelihood, title: str, folder: Path) -> Path | None:
    """Write a histogram of bits per dimension; without matplotlib, print a message and return None."""
    from ..io.files import write

    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no histogram without matplotlib: pip install 'sdesamplers[report]'", err=True)
        return None
    import numpy as np

    bits = found.bits_per_dim
    figure = Figure(figsize=(6, 3.4), dpi=120, layout="constrained")
    plot = figure.subplots()
    plot.hist(bits, bins=min(40, max(5, round(math.sqrt(len(bits)) * 2))), color="#35618f", edgecolor="white", lw=0.5)
    plot.axvline(float(np.mean(bits)), color="#c1272d", lw=1.5, label=f"mean {np.mean(bits):.3f}")
    plot.set(xlabel="negative log-likelihood (bits per dimension)", ylabel="samples")
    plot.set_title(one_line(title), parse_math=False)  # a file name may contain $
    plot.spines[["top", "right"]].set_visible(False)
    plot.legend(frameon=False)
    return write(folder / "likelihood.png", lambda path: figure.savefig(path, format="png"))


@cli.command(cls=Configured)
@click.argument("source", metavar="MODEL")
@click.argument("data", metavar="DATA")
@ode_options("heun")
@click.option("--guidance-scale", type=float, default=1.0, help="Classifier-free guidance weight.")
@click.option("--check", is_flag=True, help="Decode the latents again and print the RMS error of the round trip.")
@model_options
def encode(source: str, data: str, **kwargs: Any) -> None:
    """Encode DATA to latents of MODEL.

    Integrates the probability-flow ODE from data to noise, and writes latents.safetensors.

    DATA is a folder or file of pictures, a folder that `sample` has written as safetensors or png, an .npy or
    .safetensors file, or fashion-mnist-test, an embedded data set.
    """
    from safetensors.torch import save_file

    from ..io.files import output_folder, write
    from ..ode.encoding import decode
    from ..ode.encoding import encode as run
    from ..version import __version__

    out, as_json, check = kwargs.pop("out"), kwargs.pop("as_json"), kwargs.pop("check")
    kwargs.pop("quiet")
    model, x, names, kwargs = prepared(source, data, kwargs)
    if kwargs["steps"] is None and kwargs["nfe"] is None and not _adaptive(kwargs["sampler"]):
        raise UsageError(f"{kwargs['sampler']} needs --steps or --nfe")
    with output_folder(out) as folder:
        result = run(model, x, **kwargs)
        back = decode(model, result, **kwargs) if check else None
        about = {"model": printable(model.name), "names": "\n".join(names), "sdesamplers": __version__}
        tensors = {"samples": result.samples.contiguous()}
        if result.companion is not None:
            tensors["companion"] = result.companion.contiguous()
        file = write(folder / "latents.safetensors", lambda path: save_file(tensors, path, about))
    std = float(result.samples.std())
    facts = {"model": model.name, "images": len(x), "nfe": result.nfe, "standard_deviation": std, "file": str(file)}
    if back is not None:
        facts["round_trip_rms"] = float((back.samples - x).double().square().mean().sqrt())
    if as_json:
        emit({**facts, "recipe": result.recipe.as_dict()})
        return
    by = f"{result.recipe.sampler}, {result.nfe} NFE each"
    say(f"{len(x)} latents of {model.name} with {by}, standard deviation {std:.3f}")
    if back is not None:
        say(f"  round trip: RMS error {facts['round_trip_rms']:.3g}")
    say(f"  {file}")


def _adaptive(name: str) -> bool:
    from ..registry.registry import default_registry

    preset = default_registry().resolve(name)
    return preset.sampler.adaptive or bool(preset.grid)
