"""Grids kept from earlier calls: the points as computed anew, and none that was computed from something else."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from process_cases import TABLE

import sdesamplers as sds
from sdesamplers.sampling import recent, runs
from sdesamplers.sampling.arguments import make_recipe
from sdesamplers.sampling.request import Request


@pytest.fixture
def grids(monkeypatch):
    """No grids kept from other tests."""
    grids = recent.RecentGrids()
    monkeypatch.setattr(runs, "RECENT", grids)
    return grids


def path_of(process, sampler="euler", **arguments):
    return runs.make_path(process, make_recipe(Request(sampler, **arguments), process=process)[0])


def values(path):
    return [(p.time, p.t, p.alpha, p.sigma, p.d_alpha, p.d_sigma, p.native, p.scale) for p in path.points]


def test_a_second_call_has_the_points_of_the_first(grids):
    process = sds.DiscreteVP(TABLE)
    first, again = path_of(process, steps=7, spacing="karras"), path_of(process, steps=7, spacing="karras")
    assert all(a is b for a, b in zip(first.points, again.points, strict=True))
    assert first.ledger is not again.ledger
    assert first.points is not again.points
    np.testing.assert_equal(values(path_of(sds.DiscreteVP(TABLE), steps=7, spacing="karras")), values(again))


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 8},
        {"spacing": "linspace"},
        {"spacing_options": {"rho": 5.0}},
        {"final": "min"},
        {"coordinates": "ve"},
        {"start_time": 700.0},
        {"sampler": "rk45", "steps": None, "spacing": None},
    ],
    ids=str,
)
def test_every_argument_of_the_grid_counts(grids, other):
    process, arguments = sds.DiscreteVP(TABLE), {"steps": 7, "spacing": "karras"}
    path_of(process, **arguments)
    after = path_of(process, **{**arguments, **other})
    np.testing.assert_equal(values(after), values(path_of(sds.DiscreteVP(TABLE), **{**arguments, **other})))
    assert [p.t for p in after.points] != [p.t for p in path_of(process, **arguments).points] or "coordinates" in other


@pytest.mark.parametrize("inside", [False, True])
def test_a_changed_process_has_a_grid_of_its_own(grids, inside):
    inner = sds.RectifiedFlow()
    process = sds.reversed(inner) if inside else inner
    first = path_of(process, steps=5)
    inner.t_min = 0.25
    if inside:
        process.t_min = 0.25
    assert path_of(process, steps=5).points[-2].t != first.points[-2].t


def test_nothing_is_kept_of_a_users_process_or_spacing(grids):
    class Own(sds.VP):
        pass

    @sds.spacing("every-other")
    def every_other(span, count):
        """Falls evenly."""
        return np.linspace(span.start, span.end, count)

    path_of(Own(), steps=5)
    path_of(sds.reversed(Own()), steps=5)
    path_of(sds.VP(), steps=5, spacing=every_other)
    assert not grids._kept
    path_of(sds.VP(), steps=5)
    assert len(grids._kept) == 1


def test_few_and_short_grids_are_kept(grids):
    process = sds.VP()
    path_of(process, steps=recent.LONGEST)
    assert not grids._kept
    for steps in range(2, 2 + 2 * recent.MOST):
        path_of(process, steps=steps)
    assert len(grids._kept) == recent.MOST


def test_another_spacing_of_the_same_name_has_a_grid_of_its_own(grids):
    @sds.spacing("linspace")
    def squares(span, count):
        """Squares of equal steps."""
        return span.end + (span.start - span.end) * np.linspace(1, 0, count) ** 2

    before = path_of(sds.VP(), steps=5, spacing="linspace")
    after = path_of(sds.VP(), steps=5, spacing=squares)
    assert [p.t for p in before.points] != [p.t for p in after.points]


def test_threads_get_their_own_arguments_grids(grids):
    processes = [sds.DiscreteVP(TABLE), sds.VP()]
    expected = {
        (k, n): values(path_of(type(p)(TABLE) if k == 0 else sds.VP(), steps=n))
        for k, p in enumerate(processes)
        for n in range(2, 12)
    }

    def one(job):
        k, n = job
        np.testing.assert_equal(values(path_of(processes[k], steps=n)), expected[k, n])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, [*expected] * 20))
