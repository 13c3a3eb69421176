"""The command that compares samplers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UnknownNameError, UsageError
from .compare_table import Columns, comparison_table, notes, streamed
from .config import Configured
from .group import cli
from .options import Numbers, load_model, model_options, pairs, run_options, take_grid_options
from .run_commands import scorer_for
from .streams import say
from .tables import emit, show

if TYPE_CHECKING:
    from ..comparison import Check, Comparison, Recommendation
    from ..comparison.rules import Rule
    from ..comparison.settings import Setting


TRAJECTORIES = 3
"""Number of samples whose trajectories a report and figures show."""


@cli.command("compare", cls=Configured)
@click.argument("sources", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--samplers",
    multiple=True,
    default=["ddim,heun,rk45,euler,ddpm,euler-maruyama"],
    show_default=True,
    metavar="SETTING,...",
    help="Samplers, comma-separated, each with settings of its own if you like: 'heun,dpmpp-2m spacing=karras'. "
    "May be repeated.",
)
@click.option(
    "--nfe", type=Numbers(int), default="5,10,20,50", show_default=True, help="Budgets of model evaluations per sample."
)
@click.option("--num-samples", "-n", type=int, default=64, show_default=True, help="Number of samples.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=1, show_default=True,
    help="Runs of each setting with different seeds, for intervals of all values.",
)  # fmt: skip
@click.option(
    "--reference-samples",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    help="Samples for which the ODE error is computed; 0 for none.",
)
@click.option(
    "--metrics",
    type=click.Path(),
    help="Folder of a feature classifier; by default the metrics that the registry names for MODEL.",
)
@click.option(
    "--reference", type=click.Path(), help="Compute the FID to these pictures, or to an .npz file of mu and sigma."
)
@click.option(
    "--inception-weights", type=click.Path(), help="File of Inception weights from torch-fidelity, for --reference."
)
@click.option(
    "--guidance-scale", type=Numbers(float), default="1", show_default=True,
    help="Classifier-free guidance weights, comma-separated.",
)  # fmt: skip
@click.option("--batch-size", type=int, default=64, show_default=True, help="Samples per batch.")
@click.option(
    "--recommend", type=click.IntRange(min=1), metavar="NFE", help="Name the best setting up to NFE evaluations."
)
@click.option(
    "--report",
    is_flag=True,
    help="Write compare.html too: a page with curves, samples, trajectories, grids and recipes.",
)
@click.option("--figures", metavar="FORMATS", help="Write the figures as files; one or more of png,svg,pdf.")
@click.option("--fresh", is_flag=True, help="Make all runs again, also those that are finished in --out.")
@click.option(
    "--fail-if",
    "rules",
    multiple=True,
    metavar="RULE",
    help="Exit with code 1 if a cell fulfils the rule beyond its interval: 'error>1.1x' compares with --baseline, "
    "'frechet>0.5' with a number. May be repeated.",
)
@click.option("--baseline", type=click.Path(), help="The compare.json of an earlier comparison, or its folder.")
@click.option("--junit", type=click.Path(dir_okay=False), help="Write the outcome of --fail-if as JUnit XML.")
@run_options
@model_options
def compare_command(sources: tuple[str, ...], **kwargs: Any) -> None:
    """Compare samplers on one MODEL or several.

    Prints a table as it grows, and writes a picture, JSON and CSV; with --report, a page with all figures. Finished
    runs are kept in --out, so the same command continues after an interruption, and another setting, budget, model
    or repeat adds only its own runs.
    """
    from ..checks import whole
    from ..comparison.comparison import CELLS, as_models, compare
    from ..comparison.settings import as_settings
    from ..io.files import output_folder
    from ..sampling.setting import split_settings

    as_json, quiet, out = kwargs.pop("as_json"), kwargs.pop("quiet"), kwargs.pop("out")
    settings = as_settings(texts := [text for each in kwargs.pop("samplers") for text in split_settings(each)])
    gate = Gate.of(kwargs)
    nfe = kwargs.pop("recommend")
    options = common_options(kwargs.pop("option"), settings)
    chosen = take_grid_options(kwargs)
    ways = {key: kwargs.pop(key) for key in ("metrics", "reference", "inception_weights")}
    scorer = scorer_for(sources[0], score=False, **ways)
    for name in ("num_samples", "batch_size"):
        whole(name, kwargs[name])
    report, figures = kwargs["report"], drawing_options(kwargs)
    kwargs["cache"] = None if kwargs.pop("fresh") else Path(out) / CELLS
    loaded = [load_model(source, rest := dict(kwargs)) for source in sources]
    models, condition, kwargs = [model for model, _ in loaded], loaded[0][1], rest
    budgets, scales = kwargs.pop("nfe"), kwargs.pop("guidance_scale")
    columns = Columns([setting.label for setting in settings], [*as_models(models)], scales)
    with output_folder(out) as folder:
        with streamed(columns, silent=quiet or as_json) as (on_cell, progress), resumable(kwargs["cache"]):
            result = compare(
                models, texts, budgets, scorer=scorer, condition=condition, progress=progress, on_cell=on_cell,
                guidance_scale=scales if len(scales) > 1 else scales[0], **kwargs, **chosen, **options,
            )  # fmt: skip
        files = result.save(folder)
        files |= drawn(result, folder, report, figures)
        checks = gate.checks(result)
    best, refusal = recommended(result, nfe)
    if as_json:
        emit_result(result, files, best, checks if gate.rules else None)
    else:
        print_result(result, streamed_lines=not quiet and not sys.stdout.isatty())
        for group, found in best:
            scale = f", guidance {group.guidance_scale:g}" if len(scales) > 1 else ""
            say(f"best of {group.model_name}{scale} up to {nfe} evaluations: {found}")
        for path in files.values():
            say(f"  {path}")
        gate.print(checks, result)
    if refusal is not None:
        raise refusal  # last, since the results are there
    if any(check.outcome == "failed" for check in checks):
        click.get_current_context().exit(1)


def recommended(
    result: Comparison, nfe: int | None
) -> tuple[list[tuple[Comparison, Recommendation]], UsageError | None]:
    """The best setting of each model and guidance scale up to `nfe` evaluations; and a reason if one has none."""
    found: list[tuple[Comparison, Recommendation]] = []
    refusal: UsageError | None = None
    if nfe is None:
        return found, refusal
    for group in result.all_groups:
        try:
            found.append((group, group.recommend(nfe)))
        except UsageError as error:
            refusal = refusal or error
    return found, refusal


@contextmanager
def resumable(cache: Path | None) -> Iterator[None]:
    """After Ctrl-C, point out where the finished runs are."""
    try:
        yield
    except KeyboardInterrupt:
        if cache is not None and cache.is_dir():
            say(f"the finished runs are kept in {cache}; the same command continues", err=True)
        raise


def emit_result(
    result: Comparison,
    files: Mapping[str, Path],
    best: Sequence[tuple[Comparison, Recommendation]],
    checks: list[Check] | None,
) -> None:
    """Print everything as one JSON document."""
    data = {**result.as_dict(), "files": {key: str(path) for key, path in files.items()}}
    if checks is not None:
        data["checks"] = [vars(check) for check in checks]
    if best:
        data["recommended"] = [
            {
                "model": group.model_name,
                "guidance_scale": group.guidance_scale,
                **vars(found),
                "recipe": found.recipe.as_dict(),
            }
            for group, found in best
        ]
    emit(data)


def drawing_options(kwargs: dict[str, Any]) -> list[str]:
    """The formats of --figures; the number of trajectories is added to the arguments of `compare`.

    Raises:
        UsageError: before any run: an unknown format, or what --report or --figures need is not installed.
    """
    from ..report.page import require_page
    from ..report.plots import as_formats
    from ..report.style import require_matplotlib

    report = kwargs.pop("report")
    formats = [] if kwargs["figures"] is None else as_formats(each.strip() for each in kwargs["figures"].split(","))
    del kwargs["figures"]
    if report:
        require_page()
    if formats:
        require_matplotlib()
    if report or formats:
        kwargs["trajectories"] = TRAJECTORIES
    return formats


def drawn(result: Comparison, folder: Path, report: bool, figures: list[str]) -> dict[str, Path]:
    """Write the page and the figures; those of several models or guidance scales into folders group-1, group-2, ..."""
    from ..io.files import make_folder

    files: dict[str, Path] = {}
    for number, group in enumerate(result.all_groups, 1):
        name = f"group-{number}" if result.groups else ""
        if report:
            files[f"{name}/html" if name else "html"] = group.report(make_folder(folder / name))
        for file in group.save_figures(folder / name, figures) if figures else ():
            files[str(file.relative_to(folder))] = file
    return files


def common_options(texts: tuple[str, ...], settings: list[Setting]) -> dict[str, Any]:
    """The options of -o, which apply to all settings.

    Raises:
        UsageError: a sampler lacks one of them.
    """
    from ..sampling.setting import preset_of

    specs = [preset_of(setting.sampler).sampler for setting in settings]
    options: dict[str, Any] = {}
    for text in texts:
        options |= pairs((text,), {k: o for s in specs for k, o in s.options.items()}, "this comparison")
    if options and any(set(options) - set(s.options) for s in specs):
        lacking = next(s.name for s in specs if set(options) - set(s.options))
        raise UsageError(
            f"every --option must apply to all samplers compared, and {lacking} lacks one; put it into a setting: "
            "--samplers 'ddim eta=0.5,euler'"
        )
    return options


def print_result(result: Comparison, *, streamed_lines: bool) -> None:
    """Print the table; only what stands below it if its rows were printed already."""
    if not streamed_lines:
        show(comparison_table(result))
        return
    for group in result.all_groups:
        if group.floor is not None:
            sliced = group.floor.sliced_wasserstein
            second = "" if sliced is None else f", sliced W2 {sliced:.3g}"
            say(f"{group.model_name}: {group.floor.count} real images: Fréchet {group.floor.frechet:.3g}{second}")
    for line in notes(result):
        say(line)


class Gate:
    """The rules of --fail-if with their baseline.

    Args:
        rules, baseline: parsed and read before the first run.
        junit: the file for the outcome; None for none.
    """

    def __init__(self, rules: list[Rule], baseline: Comparison | None, junit: str | None) -> None:
        self.rules, self.baseline, self.junit = rules, baseline, junit

    @classmethod
    def of(cls, kwargs: dict[str, Any]) -> Gate:
        """The gate of the command's options, which are removed from `kwargs`.

        Raises:
            UsageError: not a rule, an option that needs another, or a baseline that does not fit.
        """
        from ..comparison import Comparison
        from ..comparison.rules import Rule, require_same_numbers
        from ..comparison.scoring import OWN
        from ..io.files import make_folder

        rules = [Rule.parse(text) for text in kwargs.pop("rules")]
        file, junit = kwargs.pop("baseline"), kwargs.pop("junit")
        for name, value in (("--baseline", file), ("--junit", junit)):
            if value is not None and not rules:
                raise UsageError(f"{name} requires --fail-if, for example --fail-if 'error>1.1x'")
        if junit is not None and (not junit or Path(junit).is_dir()):
            raise UsageError(f"--junit must be a file, not {junit!r}")
        if junit is not None:
            make_folder(Path(junit).parent)
        for rule in rules:
            if rule.metric not in OWN:
                raise UnknownNameError("metric", rule.metric, OWN, f" (known: {', '.join(OWN)})")
        if file is None and (relative := next((rule for rule in rules if rule.relative), None)):
            raise UsageError(f"--fail-if '{relative}' is relative to a baseline; pass --baseline FILE")
        baseline = None if file is None else Comparison.load(file)
        if baseline is not None:
            require_same_numbers({name: kwargs[name] for name in ("seed", "num_samples", "repeats")}, baseline)
        return cls(rules, baseline, junit)

    def checks(self, result: Comparison) -> list[Check]:
        """The outcome of all rules; written to the JUnit file too."""
        from ..comparison.rules import check_cells, junit
        from ..io.files import write

        if not self.rules:
            return []
        checks = check_cells(result, self.rules, self.baseline)
        if self.junit is not None:
            write(Path(self.junit), junit(checks))
        return checks

    def print(self, checks: list[Check], result: Comparison) -> None:
        """Print the checks that did not pass, differences from the baseline, and the number of all checks."""
        from ..comparison.rules import folded, remarks

        if not self.rules:
            return
        for line in [] if self.baseline is None else remarks(result, self.baseline):
            say(line)
        for line in folded(checks):
            say(line)
        outcomes = [check.outcome for check in checks]
        counts = {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "uncertain", "skipped")}
        say(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
