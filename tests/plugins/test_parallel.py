"""ParaDiGMS against the sequential sampler that it parallelises."""

import itertools

import numpy as np
import pytest
import torch
from lanes import every_third
from process_cases import TABLE

import sdesamplers as sds


class Calls:
    """Counts a model's batched calls and the largest batch."""

    def __init__(self, model, monkeypatch):
        self.count, self.largest, predict = 0, 0, model.predict

        def counting(x, *rest):
            self.count, self.largest = self.count + 1, max(self.largest, len(x))
            return predict(x, *rest)

        monkeypatch.setattr(model, "predict", counting)


def both(model, steps, *, count=3, coordinates="native", callback=None, **options):
    words = {"steps": steps, "num_samples": count, "seed": 4, "coordinates": coordinates, "callback": callback}
    return sds.sample(model, "paradigms", **words, **options), sds.sample(model, "ddim", **words)


@pytest.mark.parametrize(
    ("name", "steps", "window"), every_third(["vp", "edm", "flow", "table"], [1, 2, 17], [1, 3, 100])
)
def test_tolerance_zero_gives_ddim_to_the_bit(monkeypatch, name, steps, window):
    table = sds.DiscreteVP(TABLE)
    process = {"vp": sds.VP(), "edm": sds.EDM(), "flow": sds.RectifiedFlow(), "table": table}[name]
    model = sds.grid_mixture(process, prediction="v")
    expected = both(model, steps)[1].samples
    calls = Calls(model, monkeypatch)
    found = sds.sample(model, "paradigms", steps=steps, num_samples=3, seed=4, window=window, tolerance=0.0)
    # a sweep settles one state at least, and a window of one step is the sequential sampler itself
    assert calls.count <= steps
    assert calls.largest <= 3 * min(window, steps)
    if window == 1:
        assert calls.count == steps
        np.testing.assert_array_equal(found.nfe_per_sample, steps)
    torch.testing.assert_close(found.samples, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("coordinates", ["native", "flow", "angle", "ve"])
def test_the_result_is_ddims_in_all_coordinates_and_within_the_tolerance(coordinates):
    model = sds.grid_mixture(sds.VP())
    errors = []
    for tolerance in (1e-1, 1e-3, 1e-5):
        ours, sequential = both(model, 40, coordinates=coordinates, tolerance=tolerance, count=8)
        errors.append(float((ours.samples - sequential.samples).abs().max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 5e-3
    assert errors[2] < 5e-5


def test_it_makes_fewer_calls_than_steps(monkeypatch):
    model = sds.grid_mixture(sds.VP())
    calls = Calls(model, monkeypatch)
    result = sds.sample(model, "paradigms", steps=100, num_samples=4, window=20)
    assert calls.count < 40
    assert result.nfe > 100  # the price: more evaluations in all


def test_a_hard_sample_does_not_change_anothers_result():
    model = sds.grid_mixture(sds.VP())
    easy = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hard = torch.tensor([[30.0, -50.0]], dtype=torch.float64)
    words = {"steps": 30, "window": 7, "tolerance": 0.05}
    together = sds.sample(model, "paradigms", start=torch.cat([easy[:1], hard, easy[1:]]), **words)
    alone = [sds.sample(model, "paradigms", start=easy[k : k + 1], **words) for k in range(3)]
    assert together.nfe_per_sample[1] != together.nfe_per_sample[0]
    for row, one in zip((0, 2, 3), alone, strict=True):
        torch.testing.assert_close(together.samples[row : row + 1], one.samples, rtol=0, atol=1e-13)
        assert together.nfe_per_sample[row] == one.nfe


@pytest.mark.parametrize("kind", ["projection", "nudge"])
def test_a_state_that_is_edited_at_every_evaluation_gives_what_ddim_gives(kind):
    """Onto x_1 = 0.3 sigma, as inpainting does, or by a step of guidance: functions of state and point alone.

    A nudge is made in every sweep and may count but once.
    """

    def edit(event):
        x = event.x.clone()
        if kind == "projection":
            x[:, 1] = 0.3 * event.point.sigma
        else:
            x -= 0.05 * event.point.sigma * torch.tanh(x)
        event.x = x

    model = sds.grid_mixture(sds.VP())
    ours, sequential = both(model, 20, callback=edit, tolerance=0.0)
    torch.testing.assert_close(ours.samples, sequential.samples, rtol=0, atol=1e-13)
    assert not torch.allclose(ours.samples, both(model, 20)[1].samples, atol=1e-3)


@pytest.mark.parametrize("name", ["paradigms", "ddim"])
def test_a_single_edit_where_a_step_begins_is_carried_to_the_end(name):
    """At the last evaluation of a state; for paradigms its window begins there."""
    process = sds.VP()
    model = sds.GaussianModel([0.7], 0.36, process)
    times = process.time_at_log_snr(2 * np.linspace(-1.5, 1.5, 61))
    seen, counter = [], itertools.count()
    plain = sds.sample(model, name, times=times, callback=lambda event: seen.append(np.max(event.point.t))).samples
    last = max(k for k, t in enumerate(seen) if t >= times[57])

    def edit(event):
        if next(counter) == last:
            event.x = event.x + 0.05 * event.point.scale

    gain = float((sds.sample(model, name, times=times, callback=edit).samples - plain).abs()) / 0.05
    assert gain == pytest.approx(0.987, abs=2e-3)


def test_gradients_are_those_of_ddim():
    model = sds.grid_mixture(sds.VP())
    found = []
    for name, options in (("paradigms", {"tolerance": 0.0, "window": 4}), ("ddim", {})):
        start = torch.tensor([[0.4, -1.1], [1.5, 0.2]], dtype=torch.float64, requires_grad=True)
        result = sds.sample(model, name, steps=8, start=start, gradients=True, **options)
        found.append(torch.autograd.grad(result.samples.square().sum(), start)[0])
    assert found[1].abs().max() > 1e-3
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{"window": 0}, {"tolerance": -1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(sds.UsageError, match="paradigms: window must be 1 or more and tolerance 0 or more"):
        sds.sample(sds.grid_mixture(sds.VP()), "paradigms", steps=5, **options)


def test_it_needs_steps_and_cannot_plan_a_budget():
    model = sds.grid_mixture(sds.VP())
    with pytest.raises(sds.UsageError, match="needs steps"):
        sds.sample(model, "paradigms")
    with pytest.raises(sds.UsageError, match="number of evaluations depends on the states"):
        sds.sample(model, "paradigms", nfe=20)
