"""What figures and the page read of a comparison: samplers, budgets, values with their intervals and units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checks import shown
from ..errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from ..comparison.result import Cell, Comparison


@dataclass(frozen=True)
class Quantity:
    """A number of a cell.

    Attributes:
        field: the attribute of a `Cell`.
        label: its name with its unit, as the label of an axis.
        short: its name in a table.
        unit: its unit.
    """

    field: str
    label: str
    short: str
    unit: str


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


def quantity(table: dict[str, Quantity], name: str, argument: str) -> Quantity:
    """A quantity by its name.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in table:
        raise UnknownNameError(f"value of {argument}", name, table)
    return table[name]


class View:
    """A comparison, arranged for drawing.

    Attributes:
        comparison: what is drawn.
        samplers, budgets: the rows and columns of its table, in their order.
        shape: of one sample as it is shown; () if there are no samples.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self._cells = {(cell.sampler, cell.budget): cell for cell in comparison.cells}
        self.samplers = list(dict.fromkeys(cell.sampler for cell in comparison.cells))
        self.budgets = list(dict.fromkeys(cell.budget for cell in comparison.cells))
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
        """True if any cell has a positive, finite value, which a logarithmic axis can show."""
        return any(shown_on_log_axis(getattr(cell, measured.field)) for cell in self.comparison.cells)

    def interval(self, cell: Cell, measured: Quantity) -> tuple[float, float] | None:
        """The 95% interval of a cell's value, that of the comparison; None if it has none. No quality is negative."""
        ends = cell.interval(measured.field)
        return None if ends is None else (max(ends[0], 0.0), ends[1])

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
        scale = found.facts.get("guidance_scale", 1.0)
        guidance = "" if scale in (None, 1.0) else f", guidance {scale:g}"
        return f"{found.model_name}, {found.num_samples} samples, seed {found.seed}{guidance}"


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
