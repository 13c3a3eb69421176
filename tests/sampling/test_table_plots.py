"""`plot_tables`: points and ticks at the log-SNR of the angles, the weights as they are, and refusals."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from solver_tables import table_for

import sdesamplers as sds

pytest.importorskip("matplotlib")
FLOW = table_for(sds.RectifiedFlow(), (1.1, 0.7, 0.4, 0.15))
VP = table_for(sds.VP(), (0.8, 0.3), guidance_scale=7.5)


def places(axis: Any, marker: str) -> list[Any]:
    """x of all lines with a marker that have points, in order."""
    return [found.get_xdata() for found in axis.lines if found.get_marker() == marker and len(found.get_xdata())]


def test_grids_and_network_times_are_on_the_log_snr_axis():
    grids, *_ = sds.plot_tables([FLOW, VP]).axes
    # log(alpha^2/sigma^2), alpha = cos(phi), sigma = sin(phi); infinite at the flow's start and at both ends
    for found, table, finite in zip(places(grids, "o"), (FLOW, VP), (slice(1, -1), slice(0, -1)), strict=True):
        angles = np.array(table.angles[finite])
        assert found == pytest.approx(np.log(np.cos(angles) ** 2 / np.sin(angles) ** 2), abs=1e-12)
    for found, table in zip(places(grids, "|"), (FLOW, VP), strict=True):
        angles = np.array([angle for angle in table.network_angles if angle < math.pi / 2])
        assert found[-len(angles) :] == pytest.approx(-2 * np.log(np.tan(angles)), abs=1e-12)
    left, right = grids.get_xlim()
    assert [float(x) for (x,) in places(grids, "<")] == [left]  # alpha = 0, of the flow
    assert [float(x) for (x,) in places(grids, ">")] == [right, right]  # sigma = 0
    assert [label.get_text() for label in grids.get_yticklabels()] == ["5 evaluations", "3 evaluations, guidance 7.5"]
    assert "log SNR" in grids.get_xlabel()


def test_a_matrix_has_the_weights_of_each_step():
    _, flow, vp = sds.plot_tables([FLOW, VP]).axes
    for axis, table in ((flow, FLOW), (vp, VP)):
        shown = np.ma.filled(axis.images[0].get_array(), np.nan)
        assert shown.shape == (table.nfe, table.nfe + 2)
        for n, row in enumerate(table.weights):
            assert shown[n, : n + 3].tolist() == list(row)
            assert np.isnan(shown[n, n + 3 :]).all()
        low, high = axis.images[0].get_clim()
        assert -low == high == max(abs(weight) for row in table.weights for weight in row)  # 0 is the neutral colour
        written = [text.get_text() for text in axis.texts]
        assert written[:3] == [f"{weight:.2f}" for weight in table.weights[0]]
        labels = [label.get_text() for label in axis.get_xticklabels()]
        assert labels == ["$y_0$", "$y_n$", *(f"$v_{{{n}}}$" for n in range(table.nfe))]


def test_a_large_table_has_colours_in_place_of_numbers():
    table = table_for(sds.VP(), np.linspace(1.5, 0.05, 29).tolist())
    _, weights = sds.plot_tables(table).axes
    assert not weights.texts
    assert len(weights.get_xticklabels()) <= 15


def test_axes_of_the_callers_own():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 3)
    assert sds.plot_tables([FLOW, VP], axes) is figure
    assert len(axes[1].images) == len(axes[2].images) == 1
    alone = Figure().subplots()
    sds.plot_tables([FLOW, VP], alone)
    assert len(places(alone, "o")) == 2
    with pytest.raises(sds.UsageError, match=r"axes must be one, for the grids, or 3, for .*, not 2$"):
        sds.plot_tables([FLOW, VP], [axes[0], axes[1]])


def test_nothing_to_plot_and_nothing_to_plot_with(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(sds.UsageError, match="needs one solver table or more"):
        sds.plot_tables([])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(sds.UsageError, match=r"need matplotlib: pip install 'sdesamplers\[report\]'"):
        sds.plot_tables(FLOW)


def test_the_tables_of_a_tuning_are_plotted_in_order():
    tables = {3: table_for(sds.VP(), (0.9, 0.3)), 2: table_for(sds.VP(), (0.8,))}
    labels = [text.get_text() for text in sds.plot_tables(tables).axes[0].get_yticklabels()]
    assert labels == [f"{table.nfe} evaluations" for table in tables.values()]
