"""What `models` and `info` print about the models of registry.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SdesamplersError
from ..hub.address import Address, is_address
from ..io.paths import expanded
from ..registry.budgets import budgets_text
from ..registry.catalogue import Catalogue
from ..text import one_line

if TYPE_CHECKING:
    from ..sampling.table import SolverTable


def model_facts(catalogue: Catalogue, name: str) -> dict[str, Any]:
    """A model's entry, with the numbers of evaluations for which there are solver tables under "tables_nfe".

    "tables_by_guidance" has those of each guidance scale. Tables on the Hub are counted if they are in the local cache:
    nothing is downloaded. "tables_problem" is the reason if the tables that the entry names cannot be read.
    """
    from ..pretrained.hub_files import HubAccess, tables_may_be_cached
    from ..sampling.table import budgets_by_scale, tables_at

    facts = {key: value for key, value in catalogue.models[name].items() if key != "base"}
    tables: list[SolverTable] = []
    registered = catalogue.tables(name)
    own = own_source(catalogue.models[name])
    if is_address(own) and not tables_may_be_cached(Address.parse(own)):
        own = ""
    for source in filter(None, (registered, own)):
        try:
            tables += tables_at(source, access=HubAccess(local_files_only=True))
        except SdesamplersError as error:
            if source == registered:
                facts["tables_problem"] = one_line(error)
    budgets = sorted({table.nfe for table in tables})
    return {**facts, "tables_nfe": budgets, "tables_by_guidance": budgets_by_scale(tables)}


def own_source(entry: Mapping[str, Any]) -> str:
    """The place at which a model's own solver tables would be; empty for a part of a Hub repository."""
    from ..pretrained.hub_files import TABLES

    if "repo" in entry:
        if entry.get("subfolder"):  # tables are listed for whole repositories
            return ""
        return str(Address(entry["repo"], entry["revision"]))
    return str(Path(entry["base"]) / expanded(entry["path"]) / entry.get("subfolder", "") / TABLES)


def model_rows(catalogue: Catalogue, name: str) -> dict[str, Any]:
    """The rows that `info` prints about a model."""
    facts = model_facts(catalogue, name)
    rest: dict[str, Any] = {key: facts[key] for key in ("subfolder", "variant", "metrics") if key in facts}
    return {"model": name, "source": source_of(facts), "solver tables": tables_line(facts), **rest}


def source_of(facts: Mapping[str, Any]) -> str:
    """The repository and revision, or the path, of a model."""
    return f"{facts['repo']}@{facts['revision']}" if "repo" in facts else str(facts["path"])


def tables_line(facts: Mapping[str, Any]) -> str:
    """The numbers of evaluations of a model's solver tables at each guidance scale, and why some cannot be read."""
    return "; ".join(filter(None, (budgets_text(facts["tables_by_guidance"]), facts.get("tables_problem"))))
