"""A comparison as plain data: the content of compare.json, which can be read again, and the rows of compare.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from ..metrics import Score
from .cell import Cell
from .reading import SCHEMA_VERSION

if TYPE_CHECKING:
    from .result import Comparison

OF_GROUPS = ("model", "scorer", "guidance_scale")
"""Facts that belong to a model and guidance scale; the others are shared by all cells."""


def as_document(comparison: Comparison) -> dict[str, Any]:
    """The content of compare.json, without the samples; sdesamplers/comparison/schema.json describes it."""
    facts = comparison.all_groups[0].facts
    return {
        "schema_version": SCHEMA_VERSION,
        "num_samples": comparison.num_samples,
        "seed": comparison.seed,
        "repeats": comparison.repeats,
        "environment": facts.get("environment", {}),
        "arguments": {key: value for key, value in facts.items() if key not in (*OF_GROUPS, "environment")},
        "groups": [_group(group) for group in comparison.all_groups],
        "cells": [asdict(cell) for cell in comparison.cells],
    }


def _group(group: Comparison) -> dict[str, Any]:
    """What belongs to one model and guidance scale."""
    return {
        "model_name": group.model_name,
        "guidance_scale": group.guidance_scale,
        "model": group.facts.get("model", {}),
        "scorer": group.facts.get("scorer"),
        "metrics": group.metrics,
        "floor": None if group.floor is None else asdict(group.floor),
        "reference_count": group.reference_count,
        "reference_nfe": group.reference_nfe,
        "data_range": None if group.data_range is None else list(group.data_range),
    }


def from_document(kind: type[Comparison], data: Mapping[str, Any]) -> Comparison:
    """The comparison of a document in the present version of the schema."""
    known = {entry.name for entry in fields(Cell)}
    cells = [Cell(**{key: value for key, value in cell.items() if key in known}) for cell in data["cells"]]
    groups = []
    for group in data["groups"]:
        name, scale, floor = group["model_name"], group["guidance_scale"], group.get("floor")
        of_group = {key: group[key] for key in OF_GROUPS if group.get(key) is not None}
        groups.append(
            kind(
                model_name=name,
                num_samples=data["num_samples"],
                seed=data["seed"],
                cells=[cell for cell in cells if (cell.model, cell.guidance_scale) == (name, scale)],
                samples={},
                data_range=None if group.get("data_range") is None else tuple(group["data_range"]),
                floor=None if floor is None else Score(floor["count"], floor["frechet"], floor["sliced_wasserstein"]),
                metrics=group.get("metrics", ""),
                reference_count=group.get("reference_count", 0),
                reference_nfe=group.get("reference_nfe", 0),
                facts={**data["arguments"], "environment": data["environment"], **of_group},
                repeats=data["repeats"],
            )
        )
    return kind.of_groups(groups)


def as_csv(comparison: Comparison) -> str:
    """The cells as CSV with a header; shared values are repeated in each row."""
    text = io.StringIO()
    rows = [row for group in comparison.all_groups for row in _rows(group)]
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, [*names], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(group: Comparison) -> list[dict[str, Any]]:
    """The rows of one model and guidance scale."""
    model = group.facts.get("model", {})
    shared = {
        "model": group.model_name,
        "revision": model.get("revision"),
        "weights_sha256": model.get("weights_sha256"),
        "num_samples": group.num_samples,
        "seed": group.seed,
        "repeats": group.repeats,
        "versions": json.dumps(group.facts.get("environment", {})),
        "schema_version": SCHEMA_VERSION,
    }
    return [{**cell.as_row(), **shared} for cell in group.cells]
