"""The command that computes solver tables: tune."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .config import Configured
from .group import cli
from .options import Numbers, load_model, model_options
from .sharing_commands import destination
from .streams import say
from .tables import emit, show, styled, table

if TYPE_CHECKING:
    from ..metrics import Scorer
    from ..tuning.result import Tuning


@cli.command("tune", cls=Configured)
@click.argument("source", metavar="MODEL")
@click.option("--nfe", type=Numbers(int), default="8", show_default=True, help="Model evaluations; one table for each.")
@click.option("--out", type=click.Path(), default="tables", show_default=True, help="Output folder.")
@click.option("--starts", type=int, default=64, show_default=True, help="Starts for the fit; as many more judge it.")
@click.option("--trials", type=int, default=60, show_default=True, help="Search length, in passes over all starts.")
@click.option(
    "--method",
    type=click.Choice(["least-squares", "joint", "gradient"]),
    default="least-squares",
    show_default=True,
    help="joint improves the result further; so does gradient, with gradients of the network.",
)
@click.option("--iterations", type=int, help="Most steps of the method: 12 of joint, 60 of gradient.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the starts and of the search.")
@click.option("--guidance-scale", type=float, default=1.0, help="Guidance scale that the tables are for.")
@click.option(
    "--teacher",
    default="quality",
    show_default=True,
    help='Sampler whose samples are approximated, also with settings: "unipc spacing=logsnr".',
)
@click.option("--teacher-nfe", type=int, default=128, show_default=True, help="Its model evaluations.")
@click.option(
    "--distance",
    type=click.Choice(["pixels", "features"]),
    default="pixels",
    show_default=True,
    help="What is compared with the teacher's samples; features are those of the model's metrics in registry.yaml.",
)
@click.option(
    "--features",
    "with_features",
    is_flag=True,
    help="Bring the mean and covariance of these features nearer to the teacher's, too; use 256 starts or so.",
)
@click.option(
    "--warm-start",
    metavar="TABLES",
    help="File, folder or Hub address of tables from which the search begins; tuned for the model's own.",
)
@click.option("--batch-size", type=int, help="Starts that the network evaluates at once; all by default.")
@click.option("--minutes", type=float, help="Stop the search after this time, with the best so far.")
@click.option(
    "--push",
    metavar="OWNER/NAME[@BRANCH]",
    help="Upload the tables and a card to this repository of the Hub, which is created if it does not exist.",
)
@click.option("--private", is_flag=True, help="Create the repository of --push as a private one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@model_options
def tune_command(source: str, **kwargs: Any) -> None:
    """Compute solver tables for MODEL: few-step samplers fitted to this model.

    Writes one file for each number of evaluations; use them with sdesamplers sample MODEL --sampler OUT --nfe N. Ctrl-C
    keeps the best table so far, and the same command continues with the tables that are missing. With --push, others
    use the tables as --sampler hf://OWNER/NAME.
    """
    from ..io.files import output_folder
    from ..io.terminal import message_line
    from ..tuning.tune import tune

    out, as_json = kwargs.pop("out"), kwargs.pop("as_json")
    token, private = kwargs["token"], kwargs.pop("private")
    push = kwargs.pop("push")
    to = None if push is None else destination(push, token)
    if private and to is None:
        raise UsageError("--private applies to the repository of --push")
    silent = kwargs.pop("quiet") or as_json or not sys.stderr.isatty()
    compared, counted = kwargs.pop("distance") == "features", kwargs.pop("with_features")
    distance = scorer_of(source, "--distance features").distance if compared else None
    features = scorer_of(source, "--features").features if counted else None
    model, condition = load_model(source, kwargs)
    with output_folder(out) as folder:
        shown = nullcontext(None) if silent else message_line(f"tuning {model.name}")
        with shown as advance:
            functions: dict[str, Any] = {"distance": distance, "features": features, "advance": advance}
            tuning = tune(model, **kwargs, condition=condition, out=folder, **functions)
    use = used_with(tuning, scaled=kwargs["guidance_scale"] != 1.0)
    if not as_json:
        print_rows(tuning)
        if tuning.interrupted:
            missing = [nfe for nfe in kwargs["nfe"] if nfe not in tuning.tables]
            none = f", with none yet for {', '.join(map(str, missing))} evaluations" if missing else ""
            then = "" if to is None else " and to push them"
            say(f"stopped early: the tables are the best so far{none}; repeat the command to complete them{then}")
        say(f"{out}: use it as --sampler {shlex.quote(as_sampler(out))} {use}")
    pushed = None
    if to is not None and not tuning.interrupted:
        pushed = tuning.push_to_hub(to.repo, revision=to.revision, private=private or None, token=token)
    if as_json:
        facts = {"model": model.name, "interrupted": tuning.interrupted, "out": str(out), "tables": tuning.rows()}
        emit({**facts, **({} if to is None else {"pushed": pushed})})
    elif pushed is not None and to is not None:
        say(f"{pushed}: use it as --sampler {to.source} {use}")


def used_with(tuning: Tuning, *, scaled: bool) -> str:
    """The flags with which the first of the tables is used; `scaled` if the guidance is not the model's own."""
    from ..sampling.table import scale_of

    nfe, table = next(iter(tuning.tables.items()))
    return f"--nfe {nfe} --guidance-scale {scale_of(table):.15g}" if scaled else f"--nfe {nfe}"


def scorer_of(source: str, flag: str) -> Scorer:
    """The classifier or network that scores a model.

    Raises:
        UsageError: the registry names no metrics for it.
    """
    from ..comparison.scoring import find_scorer

    scorer = find_scorer(source)
    if scorer is None:
        raise UsageError(f"{flag} needs a model whose entry in registry.yaml has metrics, and {source!r} has none")
    return scorer


def as_sampler(folder: str) -> str:
    """A folder's path in a form that is not mistaken for a sampler's name."""
    from ..sampling.table import is_path

    return folder if is_path(folder) else f"./{folder}"


def print_rows(tuning: Tuning) -> None:
    """Print the errors of the tables and of the best fixed settings."""
    columns, rows = tuning.report()
    made = table("", *columns)
    for row in rows:
        made.add_row(*map(styled, row))
    show(made)
