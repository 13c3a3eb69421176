"""Figures of a comparison show its values, on axes that its data set."""

import math
import re
import sys
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from made_comparisons import HOSTILE, cell, comparison, refused

import sdesamplers as sds
from sdesamplers.report.planes import Plane, window
from sdesamplers.report.style import COLOURS, Style
from sdesamplers.report.view import View, log_snr

pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'sdesamplers[report]'")


def points(axis) -> dict[str, list[tuple[float, float]]]:
    """The data of the lines of an axis that join more than one point, by their ids."""
    return {
        line.get_gid(): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in axis.lines
        if line.get_gid() and len(line.get_xdata()) > 1 and line.get_linewidth() > 1.2
    }


def test_curves_are_the_values_of_the_cells():
    made = comparison(budgets=(4, 8, 16))
    [axis] = made.plot("work-precision").axes
    assert points(axis) == {
        "s0": [(4, 1 / 4), (8, 1 / 8), (16, 1 / 16)],
        "s1": [(4, 2 / 4), (8, 2 / 8), (16, 2 / 16)],
    }
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    [axis] = made.plot("work-precision", x="seconds", y="frechet").axes
    assert points(axis)["s0"] == [(2.0, 3 / 4), (4.0, 3 / 8), (8.0, 3 / 16)]
    assert "seconds" in axis.get_xlabel()
    assert "squared feature units" in axis.get_ylabel()


def test_the_floor_and_the_intervals_are_drawn():
    made = comparison()
    [axis] = made.plot("work-precision", y="frechet").axes
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [0.25]
    assert "6 real samples" in [text.get_text() for text in axis.texts]
    view = View(made)
    low, high = view.interval(made.cells[0], measured("frechet"))
    assert (low, high) == pytest.approx(
        (0.75 - 4.3026527 * 0.1, 0.75 + 4.3026527 * 0.1), abs=2e-3
    )  # t of 2 degrees of freedom
    bars = [tuple(line.get_ydata()) for line in axis.lines if tuple(line.get_xdata()) == (4, 4)]
    assert bars[0] == pytest.approx((low, high))
    assert view.interval(made.cells[0], measured("error")) == pytest.approx((0.25, 0.25))


def measured(name):
    from sdesamplers.report.view import QUALITIES

    return QUALITIES[name]


def test_axes_of_a_paper_are_accepted():
    from matplotlib.figure import Figure

    figure = Figure()
    (left, right), (third, fourth) = figure.subplots(2, 2)
    made = comparison()
    assert made.plot("work-precision", left) is figure
    assert made.plot("grids", [third, fourth]) is figure
    assert not figure.legends  # a legend would be placed on the caller's figure
    with pytest.raises(sds.UsageError, match="2 panels, so axes must be 2 matplotlib axes, not 1"):
        made.plot("grids", third)
    assert made.plot("errors", right, nfe=8) is figure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("work-precission",), "unknown figure 'work-precission'.*work-precision"),
        (("work-precision", None, {"y": "frechett"}), "unknown value of y 'frechett'.*frechet"),
        (("work-precision", None, {"z": 1}), "unknown option of the figure 'work-precision' 'z'"),
        (("grids", None, {"nfe": 5}), "this comparison has 4, 8 evaluations, not 5"),
        (("samples", None, {"sampler": "huen"}), "unknown sampler of this comparison 'huen'.*heun"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_nearest_name(arguments, message):
    name, axes, options = (*arguments, None, {})[:3] if len(arguments) < 3 else arguments
    with pytest.raises(sds.UsageError, match=message):
        comparison().plot(name, axes, **options)


def test_what_was_not_measured_is_refused():
    bare = comparison(reference=False, scores=False)
    bare.trajectories.clear()
    with pytest.raises(sds.UsageError, match="no error, no distances and no metrics"):
        bare.plot("work-precision")
    with pytest.raises(sds.UsageError, match="no errors"):
        bare.plot("errors")
    with pytest.raises(sds.UsageError, match="compare with trajectories=3"):
        bare.plot("trajectories")
    with pytest.raises(sds.UsageError, match="has no 'frechet'; it has 'error'"):
        comparison(scores=False).plot("work-precision", y="frechet")
    with pytest.raises(
        sds.UsageError, match=r"samples of shape \(3,\) cannot|samples of shape \(2, 3\) cannot be shown"
    ):
        comparison(shape=(2, 3)).plot("samples")


def test_scatter_plots_count_an_outlier_and_are_not_scaled_by_it():
    made = comparison(count=60)
    made.reference = torch.rand(60, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    made.samples["heun", 4][:3] = 1e6
    made.samples["heun", 4][3] = -torch.inf
    figure = made.plot("samples")
    first, *others = figure.axes
    assert -2 < first.get_xlim()[0] < -1
    assert 1 < first.get_xlim()[1] < 2
    assert [text.get_text() for text in first.texts] == ["4 outside"]
    assert not any(axis.texts for axis in others)
    reference = first.lines[0].get_xydata()
    assert reference == pytest.approx(made.reference.numpy())


def test_the_plane_of_many_dimensions_is_that_of_the_reference():
    """Data in a plane of five dimensions: the projection keeps all distances."""
    draw = np.random.default_rng(0)
    basis = np.linalg.qr(draw.normal(size=(5, 2)))[0]
    rows = draw.normal(size=(30, 2)) * [3, 1] @ basis.T + draw.normal(size=5)
    plane = Plane.of(rows, "the reference")
    assert "100% of the variance of its 30 samples" in plane.about
    found = plane.project(rows)
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (rows, found)]
    assert distances[1] == pytest.approx(distances[0])
    assert plane.project(plane.mean[None]) == pytest.approx(np.zeros((1, 2)))
    figure = comparison(shape=(5,)).plot("samples")
    assert "principal components of the reference" in figure.get_suptitle().replace("\n", " ")
    two = Plane.of(rows[:, :2], "the reference")
    assert (two.about, two.project(rows[:, :2]).tolist()) == ("", rows[:, :2].tolist())


def test_a_window_of_few_points_is_that_of_the_middle_of_all():
    few, others = np.zeros((3, 2)), np.concatenate([np.random.default_rng(0).normal(size=(500, 2)), [[1e9, 0.0]]])
    (a, c), (b, d) = window(few, others)
    assert -6 < a < b < 6
    assert (b - a) == pytest.approx(d - c)


def test_the_axis_of_grids_is_the_log_snr():
    assert log_snr(0.6 / 0.8) == pytest.approx(math.log(0.64 / 0.36))
    assert log_snr(0.0) == math.inf
    assert log_snr(None) == -math.inf
    axis = comparison(samplers=("heun",), budgets=(4,)).plot("grids").axes[0]
    ticks = next(line for line in axis.lines if line.get_marker() == "|")
    assert ticks.get_xdata() == pytest.approx(-2 * np.log([100, 10, 1, 0.1]))
    assert [line.get_marker() for line in axis.lines].count(">") == 1  # the end at sigma = 0


def test_each_sample_has_its_dot():
    made = comparison(samplers=("heun",), budgets=(4,))
    made.cells[0] = replace(made.cells[0], errors=[0.1, 0.2, 0.3, 9.0], error=4.5)
    axis = made.plot("errors").axes[0]
    dots = next(line for line in axis.lines if line.get_marker() == "o")
    assert sorted(dots.get_xdata()) == [0.1, 0.2, 0.3, 9.0]
    assert axis.get_xlim()[1] > 9


def test_trajectories_begin_and_end_where_their_states_do():
    made = comparison(samplers=("heun",), budgets=(4,))
    axis = made.plot("trajectories").axes[0]
    paths = [line.get_xydata() for line in axis.lines if len(line.get_xdata()) == 5]
    states = made.trajectories["heun", 4].states.numpy()
    assert np.array(paths) == pytest.approx(states.swapaxes(0, 1))


def test_pictures_are_below_the_reference():
    made = comparison(shape=(1, 4, 4), problem="it cannot run here")
    figure = made.plot("samples")
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["ODE reference", "heun", "ddim"]
    assert ["it cannot run here" in (axis.texts[0].get_text() if axis.texts else "") for axis in figure.axes] == [
        False, False, False, False, True, True,
    ]  # fmt: skip


def test_a_comparison_of_few_figures_writes_them(tmp_path):
    made = comparison((2, 3), ("heun",), (4,), scores=False)
    made.trajectories.clear()
    files = made.save_figures(tmp_path, ("png", "pdf"))
    assert [file.name for file in files[::2]] == [
        "work-precision-error-evaluations.png", "work-precision-error-seconds.png", "grids.png", "errors.png",
    ]  # fmt: skip
    assert all(file.read_bytes().startswith(b"%PDF") for file in files[1::2])


@pytest.mark.slow
def test_files_are_of_their_formats_and_the_same_each_time(tmp_path):
    made = comparison(shape=(1, 4, 4), samplers=("heun", HOSTILE), budgets=(4,))
    files = made.save_figures(tmp_path / "one", ("png", "svg", "pdf"))
    again = made.save_figures(tmp_path / "two", ["svg"])
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert {file.suffix for file in files} == set(starts)
    assert all(file.read_bytes().startswith(starts[file.suffix]) for file in files)
    assert len(files) == 3 * len(again) == 3 * 10
    assert all(file.read_bytes() == (tmp_path / "one" / file.name).read_bytes() for file in again)
    text = (tmp_path / "one" / "work-precision-error-evaluations.svg").read_text()
    assert "&lt;/script&gt;&lt;img src=x onerror" in text  # text, neither markup nor mathematics
    with pytest.raises(sds.UsageError, match="png, svg, pdf, not 'gif'"):
        made.save_figures(tmp_path, "gif")


def test_no_two_samplers_look_alike():
    every = [Style.of(place) for place in range(84)]
    assert len({(s.colour, s.marker, str(s.dash)) for s in every}) == 84


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_told_apart_and_seen(theme):
    """By readers with either kind of red-green blindness, simulated as by Viénot, Brettel and Mollon (1999): two
    colours differ by more than 20 in CIE Lab; and their contrast to the page is 3:1, as WCAG 1.4.11 has it."""
    style = files("sdesamplers").joinpath("report", "page", "page.css").read_text()
    rules = re.findall(r"color-scheme: (\w+);(.*?)}", style, re.S)
    found = [dict(re.findall(r"--(\w+): (#\w{6})", text)) for name, text in rules if name == theme]
    values = next(each for each in found if "s0" in each)
    assert all(each == values for each in found if "s0" in each)  # the system's dark colours and the chosen ones
    colours = [values[f"s{place}"] for place in range(len(COLOURS))]
    assert theme == "dark" or colours == list(COLOURS)
    for matrix in SEEN.values():
        seen = [lab(np.clip(np.array(matrix) @ linear(colour), 0, 1)) for colour in colours]
        assert min(np.linalg.norm(a - b) for k, a in enumerate(seen) for b in seen[:k]) > 20
    for paper in ("paper", "panel"):
        assert min(contrast(colour, values[paper]) for colour in colours) > 3
        assert min(contrast(values[text], values[paper]) for text in ("ink", "soft", "accent")) > 4.5


SEEN = {
    "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
}


def contrast(one, other):
    light, dark = sorted(
        (float(np.array([0.2126, 0.7152, 0.0722]) @ linear(each)) for each in (one, other)), reverse=True
    )
    return (light + 0.05) / (dark + 0.05)


def linear(colour):
    values = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    t = np.array(matrix) @ rgb / [0.9505, 1.0, 1.089]
    x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(sds.UsageError, match=r"need matplotlib: pip install 'sdesamplers\[report\]'"):
        comparison().plot()
    with pytest.raises(sds.UsageError, match=r"need matplotlib: pip install 'sdesamplers\[report\]'"):
        comparison().report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cell_that_did_not_run_is_a_row_with_its_reason():
    made = comparison(samplers=("heun",), budgets=(4,))
    made.cells += [refused("paradigms", 4, "too few"), cell("ddim", 4, 0.0)]
    notes = [text.get_text() for text in made.plot("errors").axes[0].texts]
    assert notes == ["not run", "no difference"]


def with_metrics(**values: list[float]) -> sds.Comparison:
    """A comparison whose cells have metrics of the caller, of the mean of two samples each."""
    made = comparison(budgets=(4, 8))
    made.cells = [
        replace(
            each,
            metrics={name: numbers[place] for name, numbers in values.items()},
            per_sample={name: [numbers[place] - 0.1, numbers[place] + 0.1] for name, numbers in values.items()},
        )
        for place, each in enumerate(made.cells)
    ]
    return made


def test_own_metrics_have_curves_with_intervals(tmp_path):
    made = with_metrics(brightness=[0.5, 0.25, 0.4, 0.2], drift=[-1.0, 2.0, 0.0, 3.0])
    [axis] = made.plot("work-precision", y="brightness").axes
    assert points(axis) == {"s0": [(4, 0.5), (8, 0.25)], "s1": [(4, 0.4), (8, 0.2)]}
    assert (axis.get_yscale(), axis.get_ylabel()) == ("log", "brightness (own metric)")
    bars = [tuple(line.get_ydata()) for line in axis.lines if tuple(line.get_xdata()) == (8, 8)]
    assert bars[1][1] == pytest.approx(0.2 + 12.7 * 0.1, rel=0.1)  # t of 1 degree of freedom; 4,000 draws
    [axis] = made.plot("work-precision", x="seconds", y="drift").axes
    assert axis.get_yscale() == "linear"  # with values of 0 and less
    assert points(axis)["s0"] == [(2.0, -1.0), (4.0, 2.0)]
    names = {path.name for path in made.save_figures(tmp_path)}
    assert {f"work-precision-{y}-{x}.png" for y in ("brightness", "drift") for x in ("evaluations", "seconds")} <= names


def test_only_a_metric_is_drawn_by_default_and_unknown_ones_are_listed():
    made = with_metrics(clip=[0.5, 0.25, 0.4, 0.2])
    with pytest.raises(sds.UsageError, match=r"unknown value of y 'clipp'.*error, frechet, sliced-wasserstein, clip"):
        made.plot("work-precision", y="clipp")
    with pytest.raises(sds.UsageError, match=r"unknown value of y ''.*there are error"):
        made.plot("work-precision", y="")
    with pytest.raises(sds.UsageError, match=r"unknown value of x 'nfe'.*there are evaluations, seconds"):
        made.plot("work-precision", x="nfe", y="clip")
    made.cells = [replace(each, error=None, frechet=None, sliced_wasserstein=None) for each in made.cells]
    assert made.plot("work-precision").axes[0].get_ylabel() == "clip (own metric)"


def test_a_metric_s_name_from_a_file_is_no_path_and_no_formula(tmp_path):
    made = with_metrics(**{"../$x^2$\u202e": [0.5, 0.25, 0.4, 0.2], "count": [1.0, 2.0, 3.0, 4.0]})
    written = made.save_figures(tmp_path / "inside")
    assert {path.parent for path in written} == {tmp_path / "inside"}
    [axis] = made.plot("work-precision", y="../$x^2$\u202e").axes
    assert not axis.yaxis.label.get_parse_math()
    assert "\u202e" not in axis.get_ylabel()
    assert not any("real samples" in text.get_text() for text in made.plot("work-precision", y="count").axes[0].texts)


def test_samplers_at_the_same_cost_are_drawn_side_by_side():
    """Two samplers at 4 evaluations are 5 points apart; the limits of the axes are those of the data."""
    figure = comparison().plot("work-precision")
    figure.draw_without_rendering()
    [axis] = figure.axes
    markers = [line for line in axis.lines if line.get_gid() and "-c" in line.get_gid() and line.get_xdata()[0] == 4]
    places = [line.get_transform().transform(line.get_xydata())[0, 0] for line in markers]
    assert (places[1] - places[0]) * 72 / figure.dpi == pytest.approx(5.0)
    assert 3 < axis.get_xlim()[0] < 4 < 8 < axis.get_xlim()[1] < 10
