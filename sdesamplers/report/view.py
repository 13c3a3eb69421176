"""What figures and the page read of a comparison: samplers, budgets, values with their intervals and units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checks import shown
from ..errors import UnknownNameError, UsageError
from ..text import one_line

if TYPE_CHECKING:
    from ..comparison.result import Cell, Comparison


@dataclass(frozen=True)
class Quantity:
    """A number of a cell.

    Attributes:
        field: its name in `Cell.value`.
        label: its name with its unit, as the label of an axis.
        short: its name in a table.
        unit: its unit.
        own: True for a metric of the caller, which may have any sign and may be better if it is larger.
    """

    field: str
    label: str
    short: str
    unit: str
    own: bool = False

    @classmethod
    def of_metric(cls, name: str, cells: Iterable[Cell]) -> Quantity:
        """The quantity of a metric of the caller."""
        mean = any(name in cell.per_sample for cell in cells)
        shown = one_line(name)
        unit = "own metric, mean of the samples" if mean else "own metric"
        return cls(name, f"{shown} (own metric)", shown, unit, True)


QUALITIES = {
    "error": Quantity("error", "ODE error (RMS, data units)", "ODE error", "RMS difference in data units"),
    "frechet": Quantity("frechet", "Fréchet distance (squared feature units)", "Fréchet", "squared feature units"),
    "sliced-wasserstein": Quantity(
        "sliced_wasserstein", "sliced Wasserstein distance (feature units)", "sliced W2", "feature units"
    ),
}
COSTS = {
    "evaluations": Quantity("nfe", "model evaluations per sample", "NFE", "evaluations per sample"),
    "seconds": Quantity("seconds", "seconds for all samples", "seconds", "seconds for all samples"),
}


def quantity(table: Mapping[str, Quantity], name: str, argument: str) -> Quantity:
    """A quantity by its name.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in table:
        listed = f"; there are {', '.join(map(one_line, table))}"
        raise UnknownNameError(f"value of {argument}", str(name), table, listed)
    return table[name]


class View:
    """A comparison, arranged for drawing.

    Attributes:
        comparison: what is drawn.
        samplers, budgets: the rows and columns of its table, in their order.
        qualities: the library's quantities by name, then the caller's metrics by theirs.
        shape: of one sample as it is shown; () if there are no samples.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self._cells = {(cell.sampler, cell.budget): cell for cell in comparison.cells}
        self.samplers = list(dict.fromkeys(cell.sampler for cell in comparison.cells))
        self.budgets = list(dict.fromkeys(cell.budget for cell in comparison.cells))
        own = dict.fromkeys(name for cell in comparison.cells for name in cell.metrics)
        metrics = {name: Quantity.of_metric(name, comparison.cells) for name in own if name not in QUALITIES}
        self.qualities: Mapping[str, Quantity] = {**QUALITIES, **metrics}
        first = next(iter(comparison.samples.values()), None)
        self.shape: tuple[int, ...] = () if first is None else tuple(first.shape[1:])

    def cell(self, sampler: str, budget: int) -> Cell | None:
        """The cell of a sampler and budget; None if it is not part of the comparison."""
        return self._cells.get((sampler, budget))

    def of(self, sampler: str) -> list[Cell]:
        """The cells of a sampler that have run, by their cost."""
        cells = [cell for cell in self._cells.values() if cell.sampler == sampler and cell.nfe is not None]
        return sorted(cells, key=lambda cell: cell.nfe or 0)

    def number(self, cell: Cell) -> int:
        """The place of a cell in the comparison."""
        return self.comparison.cells.index(cell)

    @property
    def has_images(self) -> bool:
        """True if samples are pictures of 1, 3 or 4 channels."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3, 4)

    @property
    def has_vectors(self) -> bool:
        """True if samples are vectors of two or more dimensions."""
        return len(self.shape) == 1 and self.shape[0] >= 2

    def has(self, measured: Quantity) -> bool:
        """True if any cell has a value that the quantity's axis can show."""
        return any(self.drawn(cell, measured) is not None for cell in self.comparison.cells)

    def is_linear(self, measured: Quantity) -> bool:
        """True if the axis of a quantity is linear: for metrics of the caller with a value of 0 or less."""
        values = [cell.value(measured.field) for cell in self.comparison.cells] if measured.own else []
        return any(value is not None and value <= 0 for value in values)

    def drawn(self, cell: Cell, measured: Quantity) -> float | None:
        """A cell's value if the quantity's axis can show it; None if it is not finite, or 0 on a logarithmic axis."""
        value = cell.value(measured.field)
        if value is None or not math.isfinite(value):
            return None
        return value if value > 0 or self.is_linear(measured) else None

    def interval(self, cell: Cell, measured: Quantity) -> tuple[float, float] | None:
        """The 95% interval of a cell's value, that of the comparison; None if it has none.

        No quantity of the library is negative; metrics of the caller may be.
        """
        ends = cell.interval(measured.field)
        return ends if ends is None or measured.own else (max(ends[0], 0.0), ends[1])

    def chosen(self, sampler: str | None, nfe: int | None) -> tuple[list[str], list[int]]:
        """All samplers and budgets, or those that were chosen.

        Raises:
            UsageError: the comparison does not have them.
        """
        if sampler is not None and sampler not in self.samplers:
            raise UnknownNameError("sampler of this comparison", str(sampler), self.samplers)
        if nfe is not None and nfe not in self.budgets:
            raise UsageError(f"this comparison has {', '.join(map(str, self.budgets))} evaluations, not {shown(nfe)}")
        return (
            self.samplers if sampler is None else [sampler],
            self.budgets if nfe is None else [nfe],
        )

    @property
    def size(self) -> str:
        """What was run, for the caption of a figure."""
        found = self.comparison
        guidance = self.run.removeprefix(found.model_name)
        return f"{found.model_name}, {found.num_samples} samples, seed {found.seed}{guidance}"

    @property
    def run(self) -> str:
        """The model and its guidance scale."""
        scale = self.comparison.facts.get("guidance_scale", 1.0)
        return self.comparison.model_name + ("" if scale in (None, 1.0) else f", guidance {scale:g}")


def shown_on_log_axis(value: Any) -> bool:
    """True for positive, finite numbers."""
    return value is not None and math.isfinite(value) and value > 0


def log_snr(ratio: float | None) -> float:
    """log(alpha^2/sigma^2) at sigma/alpha; None, the ratio at pure noise, is infinite."""
    if ratio is None:
        return -math.inf
    return math.inf if ratio <= 0 else -2 * math.log(ratio)


def number(value: float | None, digits: int = 3) -> str:
    """A number as text, with a true minus sign; a dash for None."""
    return "\u2013" if value is None else f"{value:.{digits}g}".replace("-", "\u2212")
