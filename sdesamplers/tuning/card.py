"""The card of solver tables: a README.md with their errors, their use and how they were made."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ..hub.cards import code, metadata, quoted, sealed
from ..public import SITE
from ..registry.registry import default_registry
from ..sampling.table import SolverTable, scale_of
from ..text import one_line
from .tuner import in_digits

TITLE = "Solver tables for"
GUIDE = f"{SITE}tuning.html"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MOST = 200
"""Characters of a list of conditions that a card quotes."""
SETTINGS = ("guidance_scale", "starts", "trials", "method", "iterations", "seed")
"""Facts that are arguments of `tune` of the same name."""


def make_card(tables: Sequence[SolverTable], source: str | None, picture: str | None = None) -> str:
    """The card of tables, as Markdown.

    Args:
        tables: those that it describes.
        source: the sampler's name with which they are used, such as "hf://owner/name"; None for "tuned".
        picture: the address of their picture, if there is one.
    """
    ordered = sorted(tables, key=lambda table: (table.nfe, scale_of(table)))
    parts = [*_head(ordered), *_errors(ordered), *_shown(picture), *_use(ordered, source), *_origin(ordered)]
    return sealed("\n".join(parts))


# The parts of a card, as lines.


def _head(tables: Sequence[SolverTable]) -> list[str]:
    base = sorted({repo for table in tables if (repo := _repo(table.facts)) is not None})
    models = ", ".join(dict.fromkeys(code(_model(table.facts)) for table in tables))
    return [
        *metadata(
            *(f"base_model: {repo}" for repo in base[:1]),
            "# license: the identifier of the licence under which you share these numbers",
        ),
        f"# {TITLE} {models}",
        "",
        "Few-step solvers that were computed for this model, one for each number of evaluations of its network: the",
        "time grid, the weights of every step and the times that the network receives. They are used in place of a",
        f"sampler of [sdesamplers]({GUIDE}).",
        "The files are data, JSON numbers with a checksum; nothing in them is run.",
        "",
    ]


def _errors(tables: Sequence[SolverTable]) -> list[str]:
    own = dict.fromkeys(
        f"; with {table.nfe} evaluations it is {code(table.facts['distance'])}"
        for table in tables
        if "distance" in table.facts
    )
    lines = [
        "## Errors",
        "",
        "Distances of samples from the teacher's, on starts that had no part in the computation: root mean square and",
        "median over the samples, and the same for the best of the library's fixed settings. The distance is the root",
        f"mean square of the difference, in units of the data{''.join(own)}.",
        "",
        "| evaluations | guidance scale | RMS error | median error | best fixed setting | its RMS error | its median |",
        "|--:|--:|--:|--:|---|--:|--:|",
    ]
    notes = []
    for table in tables:
        found = table.facts.get("errors") or {}
        fixed, teacher = found.get("fixed") or {}, table.facts.get("teacher") or {}
        setting = code(fixed["setting"]) if "setting" in fixed else "-"
        cells = [table.nfe, f"{scale_of(table):g}", *_pair(found), setting, *_pair(fixed)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
        if "sampler" in teacher:
            rms, median = _pair(teacher.get("errors") or {})
            notes.append(
                f"The teacher is {code(teacher['sampler'])} with {teacher.get('nfe')} evaluations; its own errors, "
                f"against twice as many, are {rms} (RMS) and {median} (median){_at_scale(table, tables)}."
            )
        if "frechet" in found:
            names = code(str(table.facts.get("features", "features")))
            notes.append(
                f"With {table.nfe} evaluations the Fréchet distance of {names} counted too. It is "
                f"{in_digits(found['frechet'])} from the teacher's samples, and {in_digits(fixed.get('frechet'))} for "
                "the fixed setting."
            )
    named = {id(table): f"{table.nfe}{_at_scale(table, tables)}" for table in tables}
    if returned := [named[id(each)] for each in tables if str(each.facts.get("returned")).startswith("fixed")]:
        notes.append(f"With {', '.join(returned)} evaluations nothing better than the best fixed setting was found.")
    if stopped := [named[id(each)] for each in tables if each.facts.get("interrupted")]:
        notes.append(f"The search for {', '.join(stopped)} evaluations was stopped early.")
    return [*lines, "", *(line for note in dict.fromkeys(notes) for line in (note, ""))]


def _shown(picture: str | None) -> list[str]:
    if picture is None:
        return []
    return [
        f"![Grids of the tables on the log-SNR axis, and their weights]({picture})",
        "",
        "Points are the grid, and ticks the times that the network receives. A row of weights gives the next state as",
        "a combination of the start y_0, the present state y_n and the velocities v_0, ..., v_n. The scale of the",
        "colours is each panel's own.",
        "",
    ]


def _use(tables: Sequence[SolverTable], source: str | None) -> list[str]:
    table, name = tables[-1], source or "tuned"
    model, guidance = _model(table.facts), scale_of(table)
    scaled = "" if guidance == 1.0 else f", guidance_scale={guidance:.15g}"
    flag = "" if guidance == 1.0 else f" --guidance-scale {guidance:.15g}"
    conditional = table.facts.get("condition") is not None
    given, chosen = (", condition=CONDITION", " --condition CONDITION") if conditional else ("", "")
    known = _repo(table.facts) is not None or model in default_registry().catalogue.models
    lines = [
        "## Use",
        "",
        *([] if known else [f"{code(model)} stands for the path of the model, or for the model if it has none.", ""]),
        "```python",
        "import sdesamplers as sds",
        "",
        f"model = sds.load({quoted(model)})",
        f"samples = sds.sample(model, {quoted(name)}, nfe={table.nfe}{given}{scaled}, num_samples=4).samples",
    ]
    if source is not None and len(set(map(scale_of, tables))) == 1:  # a scheduler takes tables of one scale
        lines += ["", f"# In a diffusers pipeline, with num_inference_steps={table.nfe}{scaled}:"]
        lines += [f"pipe.scheduler = sds.Scheduler.from_config(pipe.scheduler.config, recipe={quoted(source)})"]
    command = f"sdesamplers sample {shlex.quote(model)} --sampler {shlex.quote(name)} --nfe {table.nfe}{chosen}{flag}"
    return [*lines, "```", "", "```", command, "```", ""]


def _origin(tables: Sequence[SolverTable]) -> list[str]:
    """How the tables were made; those with the same settings by one call."""
    alike: dict[str, list[SolverTable]] = {}
    for table in tables:
        alike.setdefault(repr(_settings(table.facts)), []).append(table)
    lines = ["## How they were made", ""]
    for made in alike.values():
        facts, budgets = made[0].facts, [table.nfe for table in made]
        lines += [*_calls(facts, budgets), ""]
        notes = {"Revision of the model": facts.get("revision"), "Conditions": facts.get("condition")}
        notes["Interval of sigma/alpha with guidance"] = ", ".join(map(str, facts.get("guidance_interval") or ()))
        notes["Versions"] = ", ".join(f"{key} {value}" for key, value in (facts.get("versions") or {}).items())
        lines += [f"- {name}: {code(str(note)[:MOST])}" for name, note in notes.items() if note]
        if "starts" in facts:
            count = f"{facts['starts']} starts each"
            lines.append(f"- {count} for the fit, for the choice between table and fixed settings, and for the errors")
        lines.append("")
    return lines


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the call of `tune` that made a table, except the model and the number of evaluations."""
    teacher = facts.get("teacher") or {}
    asked = {name: facts.get(name) for name in SETTINGS}
    asked |= {"teacher": teacher.get("sampler"), "teacher_nfe": teacher.get("nfe")}
    if asked["guidance_scale"] == 1.0:
        asked["guidance_scale"] = None
    return {name: value for name, value in asked.items() if value is not None}


def _calls(facts: Mapping[str, Any], budgets: Sequence[int]) -> list[str]:
    """The call and the command that compute tables."""
    model, settings = _model(facts), _settings(facts)
    arguments = ", ".join(f"{name}={quoted(value)}" for name, value in settings.items())
    flags = " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in settings.items())
    call = f"sds.tune({quoted(model)}, nfe={[*budgets]}, {arguments})"
    command = f"sdesamplers tune {shlex.quote(model)} --nfe {','.join(map(str, budgets))} {flags}"
    if facts.get("condition") is not None:
        call, command = f"{call[:-1]}, condition=CONDITIONS)", f"{command} --condition CONDITIONS"
    if "warm_start" in facts:
        call, command = f"{call[:-1]}, warm_start=TABLES)", f"{command} --warm-start TABLES"
    functions = [name for name in ("distance", "features") if name in facts]
    if not functions and "guidance_interval" not in facts:
        return ["```python", call, "```", "", "```", command, "```"]
    for name in functions:  # a command cannot name them, nor a model with guidance of its own
        call = f"{call[:-1]}, {name}={one_line(facts[name])})"
    return ["```python", call, "```"]


# Texts.


def _model(facts: Mapping[str, Any]) -> str:
    """A model's name; of a folder the last part of its path, which others do not have."""
    name = one_line(facts.get("model") or "MODEL")
    return name if _repo(facts) is not None else PurePath(name.replace("\\", "/")).name or name


def _repo(facts: Mapping[str, Any]) -> str | None:
    """The model's Hub repository, if it has one."""
    name = str(facts.get("model"))
    registered: str | None = default_registry().catalogue.models.get(name, {}).get("repo")
    return registered or (name if facts.get("revision") and HUB_ID.fullmatch(name) else None)


def _at_scale(table: SolverTable, tables: Sequence[SolverTable]) -> str:
    """The guidance scale of a table, if not all tables have the same."""
    return "" if len(set(map(scale_of, tables))) == 1 else f" at guidance scale {scale_of(table):g}"


def _pair(found: Mapping[str, Any]) -> list[str]:
    return [in_digits(found[key]) if key in found else "-" for key in ("rms", "median")]
