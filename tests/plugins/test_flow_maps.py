"""Flow maps: `flow-map-euler` against closed forms, diffusers' scheduler and the Euler method that it is elsewhere."""

import pytest
import torch
from diffusers import AnyFlowTransformer3DModel, FlowMapEulerDiscreteScheduler
from process_cases import PROCESSES

import sdesamplers as sds

MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.3, 2.0], dtype=torch.float64)


def mean_velocity(x, t, r):
    """Of N(MEAN, VARIANCE) under the rectified flow: x keeps its distance from the mean, in standard deviations."""
    at = [(1 - s) * MEAN for s in (t, r)]
    width = [((1 - s) ** 2 * VARIANCE + s**2).sqrt() for s in (t, r)]
    apart = torch.where(t == r, 1.0, t - r)
    velocity = -MEAN + (t - (1 - t) * VARIANCE) / width[0] ** 2 * (x - at[0])
    return torch.where(t == r, velocity, (x - at[1] - width[1] / width[0] * (x - at[0])) / apart)


def flow_map(function=mean_velocity, process=None, shape=(2,)):
    return sds.FlowMapModel(function, process or sds.RectifiedFlow(), shape, dtype=torch.float64)


def starts(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("coordinates", ["native", "flow", "angle"])
@pytest.mark.parametrize("grid", [{"steps": 1}, {"steps": 4}, {"times": [1.0, 0.9, 0.2, 0.0]}])
def test_a_gaussians_flow_map_is_exact_in_any_number_of_steps(grid, coordinates):
    x = starts(5, 2)
    got = sds.sample(flow_map(), "flow-map-euler", start=x, coordinates=coordinates, dtype=torch.float64, **grid)
    torch.testing.assert_close(got.samples, MEAN + VARIANCE.sqrt() * x, rtol=0, atol=1e-14)
    assert got.nfe == len(grid.get("times", range(grid.get("steps", 0) + 1))) - 1


def test_the_model_is_told_where_a_step_begins_and_ends():
    told = []

    def function(x, t, r):
        told.append((float(t[0, 0]), float(r[0, 0])))
        return torch.zeros_like(x)

    sds.sample(flow_map(function), "flow-map-euler", times=[1.0, 0.75, 0.1, 0.0], num_samples=3, dtype=torch.float64)
    assert told == [(1.0, 0.75), (0.75, 0.1), (0.1, 0.0)]
    told.clear()
    sds.sample(flow_map(function), "euler", times=[1.0, 0.75, 0.1, 0.0], num_samples=3, dtype=torch.float64)
    assert told == [(1.0, 1.0), (0.75, 0.75), (0.1, 0.1)]


def test_other_samplers_follow_its_velocity_to_the_same_end():
    x = starts(5, 2)
    got = sds.sample(flow_map(), "rk45", start=x, rtol=1e-8, atol=1e-8, dtype=torch.float64).samples
    # The last step, from t = 0.001 to 0, is Euler's: h^2 / 2 times a curvature of up to 4.
    torch.testing.assert_close(got, MEAN + VARIANCE.sqrt() * x, rtol=0, atol=2.5e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("name", PROCESSES)
def test_on_a_model_that_is_told_one_time_it_is_euler(name, prediction):
    process = PROCESSES[name]
    if prediction == "epsilon" and process.alpha(process.t_max) == 0:
        pytest.skip("epsilon says nothing of x0 where alpha = 0, where this process starts")
    model = sds.MixtureModel([0.4, 0.6], [[1.0], [-0.5]], [[0.1], [0.3]], process, prediction=prediction)
    words = {"steps": 7, "num_samples": 4, "final": "min", "dtype": torch.float64}
    expected = sds.sample(model, "euler", coordinates="native", **words).samples
    for coordinates in ("native", "angle"):
        got = sds.sample(model, "flow-map-euler", coordinates=coordinates, **words).samples
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_guidance_is_of_the_two_mean_velocities():
    # All mass flows to one point, which the condition tells: straight lines, of which guidance moves the end.
    model = sds.FlowMapModel(
        lambda x, t, r, to: (x - to[:, None]) / t,
        sds.RectifiedFlow(),
        (1,),
        dtype=torch.float64,
        conditional=True,
        null_condition=0.0,
    )
    words = {"steps": 1, "start": starts(3, 1), "condition": 2.0, "dtype": torch.float64}
    for scale, end in ((1.0, 2.0), (2.5, 5.0)):
        got = sds.sample(model, "flow-map-euler", guidance_scale=scale, **words).samples
        torch.testing.assert_close(got, torch.full((3, 1), end, dtype=torch.float64), rtol=0, atol=1e-14)


def test_it_is_not_asked_at_several_points_at_once():
    def both(x, path):
        """Two points in one batch."""
        (now, then), *_ = path.steps
        outs = yield [(x, now.towards(then)), (x, then)]
        return outs[0].x

    at_once = sds.Sampler(both, "at-once", order=None)
    with pytest.raises(sds.UsageError, match="at one point at a time"):
        sds.sample(flow_map(), at_once, steps=3, num_samples=1)


def any_flow():
    """A tiny network of AnyFlow's kind."""
    torch.manual_seed(0)
    network = AnyFlowTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    return network.eval()


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4])
@torch.no_grad()
def test_any_flow_runs_as_under_diffusers_scheduler(steps, shift):
    network, text = any_flow(), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))

    def velocity(x, t, r):
        told = [(1000 * s).reshape(-1, 1).expand(-1, x.shape[1]) for s in (t, r)]
        return network(x, *told, encoder_hidden_states=text, return_dict=False)[0]

    model = sds.FlowMapModel(velocity, sds.RectifiedFlow(), (2, 4, 8, 8))
    x = starts(2, 2, 4, 8, 8).float()
    scheduler = FlowMapEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    expected = x
    for k, t in enumerate(scheduler.timesteps):  # as AnyFlowPipeline does
        ends = [s.float().expand(2) / 1000 for s in (t, 1000 * scheduler.sigmas[k + 1])]
        expected = scheduler.step(velocity(expected, *ends), t, expected, return_dict=False)[0]
    grid = {"steps": steps} if shift == 1 else {"times": scheduler.sigmas.tolist()}
    got = sds.sample(model, "FlowMapEulerDiscreteScheduler", start=x, **grid).samples
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
