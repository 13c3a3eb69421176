"""`SolverTable`: a grid and the weights of a solver, computed for one model and number of evaluations."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from ..checks import one_of_types
from ..errors import UsageError
from ..hub.address import Address, is_address
from ..io.files import make_folder, read, write
from ..io.paths import expanded
from ..pretrained.hub_files import HubAccess, fetch_samplers
from ..public import public
from ..registry.names import Preset
from ..registry.registry import default_registry
from .table_facts import (
    OF_MODEL,
    are_close,
    check_facts,
    clock,
    convention_of,
    conversions,
    same_size,
    signature,
)

if TYPE_CHECKING:
    from ..models.base import Model
    from ..pretrained.conventions import Convention
    from ..processes.sde import SDE

FORMAT, VERSION = "sdesamplers solver table", 1
LARGEST_FILE = 8 * 2**20
"""Bytes; a table of 500 steps has some 3 MB, and twice as much if its search was stopped."""
LARGEST_WEIGHT = 1e6
TUNED = "tuned"
"""The sampler's name for the solver table that comes with a model."""


@public
@dataclass(frozen=True)
class SolverTable:
    """A solver for one model and number of evaluations, as data: its grid and the weights of every step.

    It is a sampler: `sample(model, table)`. The state is y = cos(phi) x0 + sin(phi) eps with phi = arctan(sigma/alpha),
    the model's velocity v = -sin(phi) x0 + cos(phi) eps, and step n, with one evaluation v_n of the model,

        y_{n+1} = a_n y_0 + b_n y_n + sum_{j <= n} w_nj v_j

    Attributes:
        angles: phi of the points in radians, falling: N + 1 numbers from the start (pi/2 if alpha = 0) to the end (0 at
            sigma = 0).
        weights: N rows, with n + 3 numbers in row n: a_n, b_n, w_n0, ..., w_nn.
        network_angles: N numbers, phi of the time that the network receives in each step; empty if it is the state's.
        facts: how the table was made and what was measured: "model", "revision", "signature" (of the weights),
            "process" (`clock`), "prediction", "convention" (`conversions`), "guidance_scale", "nfe", "seed", "teacher",
            "errors", "versions" and others.

    Raises:
        UsageError: numbers of the wrong kind, count or range.

    Example:
        >>> table = sds.SolverTable.load("tables", nfe=8)
        >>> sds.sample("fashion-mnist", table, num_samples=4)
    """

    angles: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    network_angles: tuple[float, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "angles", _numbers("angles", self.angles))
        object.__setattr__(self, "network_angles", _numbers("network_angles", self.network_angles))
        if not isinstance(self.weights, Sequence) or isinstance(self.weights, str):
            raise UsageError("a solver table's weights must be a list of rows of numbers")
        rows = tuple(_numbers(f"weights[{n}]", row) for n, row in enumerate(self.weights))
        object.__setattr__(self, "weights", rows)
        self._check()

    def _check(self) -> None:
        angles, asked = self.angles, self.network_angles
        if len(angles) < 2:
            raise UsageError(f"a solver table needs two angles or more, not {len(angles)}")
        if not (angles[0] <= math.pi / 2 and angles[-1] >= 0 and all(a > b for a, b in pairwise(angles))):
            raise UsageError("a solver table's angles must fall from pi/2 or less to 0 or more")
        if len(self.weights) != self.nfe:
            raise UsageError(f"a solver table with {len(angles)} angles has {self.nfe} rows, not {len(self.weights)}")
        for n, row in enumerate(self.weights):
            if len(row) != n + 3:
                raise UsageError(f"weights[{n}] of a solver table must have {n + 3} numbers, not {len(row)}")
            if max(map(abs, row)) > LARGEST_WEIGHT:
                raise UsageError(f"weights[{n}] of a solver table has a number beyond {LARGEST_WEIGHT:g}")
        if asked and len(asked) != self.nfe:
            raise UsageError(f"a solver table with {self.nfe} steps has that many network_angles, not {len(asked)}")
        if any(not 0 < angle <= math.pi / 2 for angle in asked):
            raise UsageError("a solver table's network_angles must lie above 0 and be at most pi/2")

    @property
    def nfe(self) -> int:
        """Number of steps; each evaluates the model once."""
        return len(self.angles) - 1

    @property
    def evaluated_angles(self) -> tuple[float, ...]:
        """N numbers, phi of the time that the network receives in each step: `network_angles`, or the state's."""
        return self.network_angles or self.angles[:-1]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in the file."""
        data: dict[str, Any] = {"format": FORMAT, "version": VERSION, "coordinates": "angle", "angles": [*self.angles]}
        if self.network_angles:
            data["network_angles"] = [*self.network_angles]
        data |= {"weights": [[*row] for row in self.weights], "sha256": self.sha256}
        return {**data, "facts": dict(self.facts)}

    def as_json(self) -> str:
        """The content of the table's file.

        Raises:
            UsageError: the facts are not data that JSON has.
        """
        try:
            return _text(self.as_dict())
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"a solver table's facts must be data that JSON has: {error}") from None

    @property
    def sha256(self) -> str:
        """Checksum of the numbers, which the file contains too."""
        return hashlib.sha256(repr((self.angles, self.network_angles, self.weights)).encode()).hexdigest()

    @classmethod
    def from_dict(cls, data: Any) -> SolverTable:
        """The table of a dictionary from `as_dict`.

        Raises:
            UsageError: another format or version, an unknown or missing key, or numbers that are not a table.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise UsageError("not a solver table: the key 'format' is missing or has another value")
        if data.get("version") != VERSION:
            raise UsageError(
                f"a solver table of version {data.get('version')!r}; this release of sdesamplers reads {VERSION}"
            )
        if data.get("coordinates") != "angle":
            raise UsageError(f"a solver table's coordinates must be 'angle', not {data.get('coordinates')!r}")
        known = {"format", "version", "coordinates", "angles", "network_angles", "weights", "sha256", "facts"}
        if unknown := sorted(map(str, set(data) - known)):
            raise UsageError(f"a solver table has no key {unknown[0]!r}")
        if missing := [key for key in ("angles", "weights") if key not in data]:
            raise UsageError(f"the solver table has no {missing[0]}")
        facts = data.get("facts", {})
        check_facts(facts)
        table = cls(data["angles"], data["weights"], data.get("network_angles", ()), facts)
        if data.get("sha256", table.sha256) != table.sha256:
            raise UsageError("the solver table's numbers were changed: they do not have the checksum sha256")
        return table

    def save(self, path: str | FilePath) -> FilePath:
        """Write the table as JSON; to `file_name` if `path` is a folder. Returns the file.

        Raises:
            SdesamplersError: the file cannot be written.
            UsageError: not a path, or facts that JSON does not have.
        """
        file = FilePath(one_of_types("path", path, (str, FilePath), "the path of a file or folder"))
        if file.is_dir() or file.suffix != ".json":
            file = make_folder(file) / self.file_name
        make_folder(file.parent)
        return write(file, self.as_json())

    @property
    def guidance_scale(self) -> float | None:
        """The guidance scale that the table was computed for, if its facts have it."""
        scale = self.facts.get("guidance_scale")
        return float(scale) if isinstance(scale, int | float) else None

    @property
    def file_name(self) -> str:
        """The file's name in a folder of tables."""
        return file_name(self.nfe, scale_of(self))

    @classmethod
    def load(cls, path: str | FilePath, nfe: int | None = None, guidance_scale: float = 1.0) -> SolverTable:
        """Read a table from a file, or the one for `nfe` evaluations from a folder or a Hub repository.

        If there are several for this number of evaluations, it is that for `guidance_scale`. A repository is given as
        "hf://owner/name", "hf://owner/name@revision" or "hf://owner/name@revision/path". Its tables are data; nothing
        is run. `facts["source"]` of tables from the Hub is their address with the commit.

        Raises:
            ModelError: the repository cannot be read.
            UsageError: no such file, not a table, or none, or more than one, for this number of evaluations.
        """
        path = one_of_types("path", path, (str, FilePath), "a path, or an address of the Hub")
        return choose(tables_at(path), nfe, str(path), guidance_scale)

    def preset(self) -> Preset:
        """The registered sampler `table` with this table's options and grid."""
        registry = default_registry()
        return Preset(
            registry.samplers["table"],
            {"weights": self.weights, "network_angles": self.network_angles},
            spacing="table",
            spacing_options={"angles": self.angles},
            coordinates="angle",
            steps=self.nfe,
            final="min" if self.angles[-1] else "zero",
        )

    def check_model(self, model: Model) -> None:
        """Raise a UsageError if the table was computed for a model with other weights, process or prediction type.

        Weights are compared by `signature`, up to the rounding of a lower precision. Tables without these facts fit any
        model, and functions without networks are not distinguished.
        """
        self.check_process(model.process, model.prediction, convention_of(model))
        own = self.facts.get("signature")
        found = signature(model) if own else []
        if own and found and (len(own) != len(found) or not all(map(same_size, own, found))):
            name = self.facts.get("model")
            other, here = f"another model, {name!r}", f"{model.name!r}"
            if name == model.name:
                other, here = f"{name!r} with other networks or other weights", "this model"
            raise UsageError(
                f"this solver table was computed for {other}, and its errors on {here} are not known; compute one with "
                "sds.tune, or try table.for_any_model()"
            )

    def check_process(self, process: SDE, prediction: str, convention: Convention | None = None) -> None:
        """Raise a UsageError if the table's facts are of another process, prediction type or convention."""
        own, rows = self.facts.get("prediction"), self.facts.get("process")
        converted = self.facts.get("convention")
        if own is not None and own != prediction:
            reason = f"a model that predicts {own!r}, and this one predicts {prediction!r}"
        elif rows and not are_close(rows, clock(process)):
            reason = f"another process than {process!r}: the network's times or the scales of its input differ"
        elif converted and (present := conversions(convention)) and not are_close(converted, present):
            reason = (
                "another scheduler configuration: the network's timesteps, the scales of its input or the meaning of "
                "its output differ"
            )
        else:
            return
        raise UsageError(
            f"this solver table was computed for {reason}; compute one with sds.tune, or try table.for_any_model()"
        )

    @staticmethod
    def refuse_grid(arguments: Mapping[str, Any]) -> None:
        """Raise a UsageError if one of a call's arguments would change the grid of a table."""
        for name in ("times", "sigmas", "spacing", "spacing_options", "final", "start_time"):
            if arguments.get(name) is not None:
                raise UsageError(f"a solver table has its own grid, so {name}= does not apply to it")

    def for_any_model(self) -> SolverTable:
        """A copy without the facts about the model, which runs on any model whose process includes the start."""
        kept = {key: value for key, value in self.facts.items() if key not in OF_MODEL}
        return replace(self, facts=kept)

    def __repr__(self) -> str:
        model = self.facts.get("model")
        return f"SolverTable({self.nfe} evaluations{f', for {model}' if model else ''})"


def file_name(nfe: int, guidance_scale: float) -> str:
    """The name of a table's file for a number of evaluations and a guidance scale."""
    return f"nfe-{nfe}.json" if guidance_scale == 1.0 else f"nfe-{nfe}-guidance-{guidance_scale:.15g}.json"


def scale_of(table: SolverTable) -> float:
    """The guidance scale for which a table is chosen from several: its own, or 1 if that is unknown."""
    return 1.0 if table.guidance_scale is None else table.guidance_scale


def read_table(file: FilePath) -> SolverTable:
    """Read a file; errors name it."""
    try:
        return SolverTable.from_dict(json.loads(read(file, LARGEST_FILE), parse_constant=_refuse_constant))
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{file}: not a solver table ({error})") from None


def read_tables(folder: FilePath) -> list[SolverTable]:
    """The tables of a folder, by guidance scale and number of evaluations.

    Raises:
        UsageError: it has none, or a file `nfe-*.json` that is not a table.
    """
    found = [read_table(file) for file in sorted(folder.glob("nfe-*.json"))]
    if not found:
        raise UsageError(f"{folder} has no solver tables (files nfe-*.json, as `sdesamplers tune` writes them)")
    return sorted(found, key=lambda table: (scale_of(table), table.nfe))


class TableSet:
    """Solver tables for several numbers of evaluations, of which a run takes its own; the result of `tune` is one.

    Attributes:
        tables: number of evaluations -> `SolverTable`.
    """

    tables: dict[int, SolverTable]

    @property
    def owner(self) -> str:
        """What messages call it."""
        return f"this {type(self).__name__}"


def tables_at(source: str | FilePath, *, access: HubAccess | None = None) -> list[SolverTable]:
    """The table of a file, or the tables of a folder or of a Hub repository, "hf://owner/name[@revision][/path]".

    `access` has the options of downloads from the Hub.

    Raises:
        ModelError: the repository cannot be read, or is not in the cache with `access.local_files_only`.
        UsageError: no such file, not a table, or no tables.
    """
    if not str(source):
        raise UsageError("the path of solver tables is empty; for those in the present folder pass '.'")
    if not is_address(source):
        return tables_in(expanded(source), str(source))
    found = fetch_samplers(Address.parse(str(source)), **vars(access or HubAccess()))
    return tables_in(found[0], str(source), found[1])


def tables_in(place: FilePath, source: str, address: Address | None = None) -> list[SolverTable]:
    """The table of a file or the tables of a folder, which may be a copy of that at an address.

    Raises:
        UsageError: no such file, not a table, or no tables; the message names the source.
    """
    try:
        tables = read_tables(place) if place.is_dir() else [read_table(place)]
    except UsageError as error:  # blame the repository, not the folder in the cache
        message = str(error)
        raise UsageError(
            source + message.removeprefix(str(place)) if message.startswith(str(place)) else message
        ) from None
    if address is None:
        return tables
    files = [f"{address.path}/{table.file_name}".lstrip("/") if place.is_dir() else address.path for table in tables]
    return [
        replace(table, facts={**table.facts, "source": str(address.inside(file))})
        for table, file in zip(tables, files, strict=True)
    ]


def choose(tables: Iterable[SolverTable], nfe: int | None, source: str, guidance_scale: float = 1.0) -> SolverTable:
    """The one table for a number of evaluations; the only one if `nfe` is None.

    If several tables are for this number, the one for the guidance scale.

    Raises:
        UsageError: there is none, or more than one.
    """
    tables = list(tables)
    budgets = sorted({table.nfe for table in tables})
    listed = ", ".join(map(str, budgets))
    if not budgets:
        raise UsageError(f"{source} has no solver tables")
    if nfe is None and len(budgets) > 1:
        raise UsageError(f"{source} has solver tables for {listed} evaluations; choose one with nfe=")
    found = [table for table in tables if nfe in (None, table.nfe)]
    if not found:
        raise UsageError(f"{source} has no solver table for {nfe} evaluations, only for {listed}")
    if len(found) > 1:
        exact = [table for table in found if scale_of(table) == guidance_scale]
        if len(exact) != 1:
            scales = ", ".join(f"{scale:g}" for scale in sorted(map(scale_of, found)))
            raise UsageError(
                f"{source} has solver tables of {found[0].nfe} evaluations for guidance scales {scales}; "
                "pass one of these, or name the file"
            )
        found = exact
    return found[0]


def budgets_by_scale(tables: Iterable[SolverTable]) -> list[dict[str, Any]]:
    """The guidance scales for which there are tables, and the numbers of evaluations of each, as plain data.

    Example:
        >>> budgets_by_scale([])
        []
    """
    found: dict[float, set[int]] = {}
    for table in tables:
        found.setdefault(scale_of(table), set()).add(table.nfe)
    return [{"guidance_scale": scale, "nfe": sorted(found[scale])} for scale in sorted(found)]


PATH = re.compile(r"^[.~]|[/\\]|\.(?:json|ya?ml)$", re.IGNORECASE)
"""Names of samplers have no slash, no leading point and no file ending."""


def is_path(name: str) -> bool:
    """True if a sampler's name is the path or address of a recipe, of a table or of a folder of tables."""
    return bool(PATH.search(name))


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise UsageError(f"a solver table's {name} must be a list of numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"a solver table's {name} must be finite numbers, not {value!r}")
    return tuple(float(value) for value in values)


def _text(data: Mapping[str, Any]) -> str:
    """JSON with a line for each key and for each row of weights."""
    lines = []
    for key, value in data.items():
        rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in value) if key == "weights" else ""
        lines.append(f"{json.dumps(key)}: " + (f"[\n  {rows}\n ]" if rows else json.dumps(value, allow_nan=False)))
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")
