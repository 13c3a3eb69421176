"""`sample`: batches, budgets, callbacks, cancellation, checks, log-probabilities and every bad word."""

import itertools
import math
import threading

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from process_cases import TABLE
from watching import evaluated

import sdesamplers as sds

ALL = ("euler", "heun", "euler-maruyama", "ddim", "ddpm", "rk45")
STOCHASTIC = ("euler-maruyama", "ddpm")


@pytest.fixture(scope="module")
def mixture():
    return sds.grid_mixture(sds.VP())


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "noise"),
    mostly_slow(
        itertools.product(ALL, ("independent", "brownian")),
        keep=[("heun", "independent"), ("euler-maruyama", "independent"), ("ddpm", "brownian"), ("ddim", "brownian")],
    ),
)
def test_a_sample_does_not_depend_on_its_batch(mixture, sampler, noise):
    common = {"steps": 8, "seed": 5, "noise": noise}
    whole = sds.sample(mixture, sampler, num_samples=8, **common).samples
    close = {"rtol": 0, "atol": 1e-12}
    for size in (1, 3, 5):
        found = sds.sample(mixture, sampler, num_samples=8, batch_size=size, **common)
        torch.testing.assert_close(found.samples, whole, **close)
    head = sds.sample(mixture, sampler, num_samples=3, **common)
    tail = sds.sample(mixture, sampler, num_samples=5, first_index=3, **common)
    torch.testing.assert_close(torch.cat([head.samples, tail.samples]), whole, **close)
    assert head.indices + tail.indices == list(range(8))
    singles = [sds.sample(mixture, sampler, first_index=k, **common).samples for k in range(8)]
    torch.testing.assert_close(torch.cat(singles), whole, **close)
    assert len({tuple(row) for row in whole.tolist()}) == 8
    other = sds.sample(mixture, sampler, num_samples=8, **{**common, "seed": 6}).samples
    assert float((other - whole).abs().min()) > 1e-6


@pytest.mark.parametrize("sampler", ALL)
def test_the_start_is_the_same_for_every_sampler_and_step_noise_is_separate(mixture, sampler):
    words = {"steps": 4, "coordinates": "native", "spacing": "linspace"}
    _, events = evaluated(lambda keep: sds.sample(mixture, sampler, num_samples=3, seed=9, callback=keep, **words))
    start = sds.NormalSource(9, range(3), (2,)).draw(0).double() * math.sqrt(1 - math.exp(-10.05))
    torch.testing.assert_close(events[0][1], start, rtol=1e-12, atol=1e-12)


def test_threads_with_one_model_give_what_a_serial_run_gives(mixture):
    jobs = [(sampler, seed) for sampler in ALL for seed in (1, 2)]

    def run(job):
        return sds.sample(mixture, job[0], steps=12, num_samples=2, seed=job[1], noise="brownian").samples

    serial = {job: run(job) for job in jobs}
    found, barrier = {}, threading.Barrier(2)

    def work(order):
        barrier.wait()
        for job in order:
            found[threading.current_thread().name, job] = run(job)

    threads = [threading.Thread(target=work, args=(order,)) for order in (jobs, jobs[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 * len(jobs)
    for (_, job), samples in found.items():
        assert torch.equal(samples, serial[job])


# --- evaluations ------------------------------------------------------------------------------------------------------

EVALUATIONS = {  # n steps to sigma = 0, where the last one needs no slope at its end; and n steps to t_min
    "euler": (lambda n: n, lambda n: n),
    "euler-maruyama": (lambda n: n, lambda n: n),
    "ddim": (lambda n: n, lambda n: n),
    "ddpm": (lambda n: n, lambda n: n),
    "heun": (lambda n: 2 * n - 1, lambda n: 2 * n),
    "rk45": (lambda n: 6 * n - 5, lambda n: 6 * n + 1),
}


@pytest.mark.parametrize("final", [0, 1])
@pytest.mark.parametrize("sampler", ALL)
def test_evaluations_are_counted_as_declared_and_as_made(mixture, sampler, final):
    calls = []

    def counted(x, t):
        calls.append(len(x))
        return mixture.predict(x, t)

    model = sds.FunctionModel(counted, mixture.process, "epsilon", (2,), dtype=torch.float64)
    for steps in (1, 2, 7):
        calls.clear()
        result = sds.sample(model, sampler, steps=steps, num_samples=3, final=("zero", "min")[final])
        assert result.nfe == len(calls) == EVALUATIONS[sampler][final](steps)
        assert result.nfe_per_sample.tolist() == [result.nfe] * 3


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("final", [0, 1])
def test_a_budget_gives_the_most_steps_that_fit(mixture, sampler, final):
    cost = EVALUATIONS[sampler][final]
    for budget in (1, 2, 6, 7, 13, 20, 35):
        expected = max((n for n in range(1, 60) if cost(n) <= budget), default=None)
        run = {"nfe": budget, "final": ("zero", "min")[final]}
        if expected is None:
            with pytest.raises(sds.UsageError, match=f"needs {cost(1)} evaluations .* nfe={budget} is too few"):
                sds.sample(mixture, sampler, **run)
        else:
            result = sds.sample(mixture, sampler, **run)
            assert result.recipe.steps == expected
            assert result.nfe == cost(expected) <= budget


# --- callbacks, cancellation, checks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("coordinates", ["native", "angle"])
@pytest.mark.parametrize("sampler", ALL)
def test_a_state_replaced_by_a_callback_is_the_one_that_counts(mixture, sampler, coordinates):
    """Replacing the state at the k-th point is the same run as one started there from that state."""
    times = [1.0, 0.7, 0.4, 0.2]
    replacement = torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=torch.float64)
    seen = []

    def edit(event):
        seen.append(event.evaluation)
        if event.evaluation == 0:
            event.x = replacement * event.point.scale

    common = {"num_samples": 2, "coordinates": coordinates, "seed": 2, "times": times}
    edited = sds.sample(mixture, sampler, callback=edit, **common)
    started = sds.sample(mixture, sampler, start=replacement, **common)
    torch.testing.assert_close(edited.samples, started.samples, rtol=1e-12, atol=1e-12)
    assert seen == list(range(edited.nfe))
    assert not torch.allclose(sds.sample(mixture, sampler, **common).samples, edited.samples, atol=1e-3)


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim"])
def test_a_state_replaced_in_the_middle_restarts_the_ode_there(mixture, sampler):
    times = [1.0, 0.7, 0.4, 0.2]
    replacement = torch.tensor([[0.3, -0.2]], dtype=torch.float64)

    def edit(event):
        if event.point.t == 0.4 and event.evaluation % sds.samplers()[sampler].evaluations == 0:
            event.x = replacement

    words = {"coordinates": "native"}
    edited = sds.sample(mixture, sampler, times=times, callback=edit, **words).samples
    expected = sds.sample(mixture, sampler, times=times[2:], start=replacement, **words).samples
    torch.testing.assert_close(edited, expected, rtol=1e-12, atol=1e-12)


def test_a_callback_sees_every_evaluation_with_its_point_and_state(mixture):
    result, events = evaluated(
        lambda keep: sds.sample(mixture, "heun", steps=5, spacing="linspace", num_samples=3, callback=keep)
    )
    assert len(events) == result.nfe == 9
    assert [round(p.t, 9) for p, _ in events] == [1.0] + [t for t in (0.75025, 0.5005, 0.25075, 0.001) for _ in "ab"]
    assert all(x.shape == (3, 2) for _, x in events)


def test_a_callback_can_stop_a_run(mixture):
    def stop(event):
        if event.evaluation == 4:
            raise sds.Cancelled("enough")

    with pytest.raises(sds.Cancelled, match="enough"):
        sds.sample(mixture, "euler", steps=10, callback=stop)


def test_an_event_stops_a_run_between_evaluations(mixture):
    flag = threading.Event()

    def raise_flag(event):
        if event.evaluation == 2:
            flag.set()

    with pytest.raises(sds.Cancelled, match="euler on mixture was cancelled after 3 evaluations"):
        sds.sample(mixture, "euler", steps=10, callback=raise_flag, cancel=flag)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampler", ALL)
def test_a_model_that_breaks_down_is_reported_with_sampler_and_time(mixture, sampler, bad):
    def broken(x, t):
        out = mixture.predict(x, t)
        if t.max() < 0.6:
            out[1, 0] = bad
        return out

    model = sds.FunctionModel(broken, mixture.process, "epsilon", (2,), dtype=torch.float64, name="broken")
    run = {"times": [1.0, 0.7, 0.5, 0.3], "num_samples": 2}
    with pytest.raises(sds.NonFiniteError, match=rf"{sampler} on broken: .*evaluation \d+, t = 0\.5"):
        sds.sample(model, sampler, **run)
    result = sds.sample(model, sampler, check_finite=False, **run)
    assert not torch.isfinite(result.samples[1]).all()
    assert torch.isfinite(result.samples[0]).all()


def test_a_model_is_not_blamed_for_a_state_that_has_diverged():
    # In `ve` coordinates of EDM dx/dsigma = (x - x0)/sigma; an x0 that runs away from x makes every step a factor.
    model = sds.FunctionModel(lambda x, t: -1e20 * x, sds.EDM(), "sample", (1,))
    with pytest.raises(sds.NonFiniteError, match=r"at evaluation 2, .* state has grown to .*more steps"):
        sds.sample(model, "euler", times=[80.0, 40.0, 20.0, 10.0, 5.0])


def test_a_sample_that_overflows_is_reported_even_if_the_model_did_not():
    model = sds.FunctionModel(lambda x, t: torch.full_like(x, 3e38), sds.EDM(), "epsilon", (1,))
    with pytest.raises(sds.NonFiniteError, match="the sample is not finite"):
        sds.sample(model, "euler", times=[80.0, 1.0])


# --- trajectories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coordinates", ["native", "ve", "angle"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "ddpm"])
def test_a_trajectory_holds_the_states_at_the_evaluations_in_the_models_coordinates(mixture, sampler, coordinates):
    def run(callback):
        return sds.sample(
            mixture,
            sampler,
            steps=6,
            num_samples=3,
            batch_size=3,
            coordinates=coordinates,
            trajectory=True,
            callback=callback,
        )

    result, events = evaluated(run)
    times, states = result.trajectory.times, result.trajectory.states
    assert times.shape == (result.nfe + 1,)
    assert states.shape == (result.nfe + 1, 3, 2)
    assert states.dtype == result.samples.dtype
    for k, (point, x) in enumerate(events):
        assert times[k] == point.t
        torch.testing.assert_close(states[k], x / point.scale)
    torch.testing.assert_close(states[-1], result.samples)
    assert (
        float((states[0] - mixture.process.sigma(1.0) * sds.NormalSource(0, range(3), (2,)).draw(0)).abs().max()) < 1e-6
    )


def test_a_trajectory_of_euler_is_the_euler_recursion(mixture):
    result = sds.sample(mixture, "euler", times=[1.0, 0.6, 0.3, 0.1], num_samples=2, trajectory=True)
    states = result.trajectory.states.double()
    for k, (now, then) in enumerate([(1.0, 0.6), (0.6, 0.3), (0.3, 0.1)]):
        beta = 0.1 + 19.9 * now
        score = mixture.score(states[k], now)
        expected = states[k] + (then - now) * (-0.5 * beta * (states[k] + score))
        torch.testing.assert_close(states[k + 1], expected, rtol=1e-4, atol=1e-4)


def test_trajectories_of_batches_are_joined(mixture):
    run = {"steps": 5, "num_samples": 7, "trajectory": True}
    whole, parts = sds.sample(mixture, "heun", **run), sds.sample(mixture, "heun", batch_size=3, **run)
    torch.testing.assert_close(whole.trajectory.states, parts.trajectory.states)
    np.testing.assert_array_equal(whole.trajectory.times, parts.trajectory.times)


# --- log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler-maruyama"])
def test_log_probs_are_the_densities_of_the_steps(mixture, sampler):
    """Each step's mean and variance written out here; the states are those that were evaluated."""
    options = {"ddim": {"eta": 0.6}, "euler-maruyama": {"eta": 0.8}}.get(sampler, {})
    times = [1.0, 0.7, 0.45, 0.2]

    def run(callback):
        return sds.sample(
            mixture, sampler, times=times, num_samples=3, seed=4, log_probs=True, callback=callback, **options
        )

    result, events = evaluated(run)
    assert result.log_probs.shape == (3, 3)
    assert result.log_probs.dtype == torch.float64
    states = [x for _, x in events] + [result.samples]
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        bt, bs = (0.1 * u + 0.5 * 19.9 * u * u for u in (t, s))
        at, as_, vt, vs = math.exp(-bt / 2), math.exp(-bs / 2), -math.expm1(-bt), -math.expm1(-bs)
        x, score = states[k], mixture.score(states[k], t)
        eps = -math.sqrt(vt) * score
        x0 = (x - math.sqrt(vt) * eps) / at
        if sampler == "euler-maruyama":
            rate, h = 0.1 + 19.9 * t, s - t
            mean = x + h * (-0.5 * rate * x - (1 + 0.64) / 2 * rate * score)
            var = 0.64 * rate * -h
        else:
            posterior = vs / vt * (vt - at**2 / as_**2 * vs)
            var = posterior if sampler == "ddpm" else 0.36 * posterior
            mean = as_ * x0 + math.sqrt(vs - var) * eps
        expected = (-0.5 * (states[k + 1] - mean) ** 2 / var - 0.5 * math.log(2 * math.pi * var)).sum(1)
        torch.testing.assert_close(result.log_probs[:, k], expected, rtol=1e-8, atol=1e-8)


def scaled_model(mixture, weight):
    """The mixture's epsilon times a parameter."""
    return sds.FunctionModel(
        lambda x, t: weight * mixture.predict(x, t), mixture.process, "epsilon", (2,), dtype=torch.float64
    )


@pytest.mark.parametrize("coordinates", ["native", "angle"])
@pytest.mark.parametrize(("sampler", "options"), [("ddpm", {}), ("ddim", {"eta": 0.7}), ("euler-maruyama", {})])
def test_replayed_log_probs_are_the_recorded_ones_and_carry_gradients(mixture, sampler, options, coordinates):
    weight = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    model = scaled_model(mixture, weight)
    result = sds.sample(
        model, sampler, steps=6, num_samples=5, batch_size=2, coordinates=coordinates, log_probs=True, **options
    )
    assert result.log_probs.shape == (5, 5)  # no noise into sigma = 0
    replayed = sds.replay_log_probs(model, result)
    torch.testing.assert_close(replayed, result.log_probs, rtol=0, atol=1e-5)
    replayed.sum().backward()
    h = 1e-5

    def total(w):
        with torch.no_grad():
            return float(sds.replay_log_probs(scaled_model(mixture, w), result).sum())

    numeric = (total(1 + h) - total(1 - h)) / (2 * h)
    assert float(weight.grad) == pytest.approx(numeric, rel=1e-4, abs=1e-4)
    assert abs(numeric) > 1e-3
    other = sds.replay_log_probs(scaled_model(mixture, 1.1), result)
    assert float((other - replayed).detach().abs().min()) > 1e-6


def test_gradients_of_a_replay_can_be_gathered_a_part_at_a_time(mixture):
    weight = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    labels = sds.FunctionModel(
        lambda x, t, c: weight * (1 + 0.01 * c[:, None]) * mixture.predict(x, t),
        mixture.process,
        "epsilon",
        (2,),
        dtype=torch.float64,
        conditional=True,
    )
    result = sds.sample(labels, "ddpm", steps=4, num_samples=5, log_probs=True, condition=torch.arange(5.0))
    whole = sds.replay_log_probs(labels, result)
    whole.sum().backward()
    expected, weight.grad = weight.grad, None
    for rows in (slice(0, 2), slice(2, 5)):
        part = sds.replay_log_probs(labels, result, rows)
        torch.testing.assert_close(part, whole[rows], rtol=1e-12, atol=1e-12)
        part.sum().backward()
    torch.testing.assert_close(weight.grad, expected, rtol=1e-10, atol=0)
    with pytest.raises(sds.UsageError, match="none of the 5"):
        sds.replay_log_probs(labels, result, slice(5, 9))


def test_a_run_without_noise_has_no_transitions(mixture):
    result = sds.sample(mixture, "euler", steps=3, num_samples=2, log_probs=True)
    assert result.log_probs.shape == (2, 0)
    assert not result.drew_noise
    assert sds.replay_log_probs(mixture, result).shape == (2, 0)
    with pytest.raises(sds.UsageError, match="log_probs=True"):
        sds.replay_log_probs(mixture, sds.sample(mixture, "ddpm", steps=3))


# --- starts --------------------------------------------------------------------------------------------------------


def test_a_partly_noised_start_runs_from_its_own_time(mixture):
    start = torch.tensor([[0.5, -0.5], [1.0, 0.0]], dtype=torch.float64)
    run = {"steps": 4, "num_samples": 2, "start": start, "final": "min"}
    result, events = evaluated(lambda keep: sds.sample(mixture, "euler", start_time=0.6, callback=keep, **run))
    expected = np.linspace(0.6, 1e-3, 5)
    np.testing.assert_allclose([p.t for p, _ in events], expected[:-1], rtol=1e-12)
    assert torch.equal(events[0][1], start)
    by_hand = sds.sample(mixture, "euler", times=expected, start=start, num_samples=2).samples
    torch.testing.assert_close(result.samples, by_hand, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(sds.sample(mixture, "euler", **run).samples, by_hand, atol=1e-3)


def test_a_start_is_in_the_models_coordinates_whatever_the_path_uses(mixture):
    start = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
    ends = [
        sds.sample(mixture, "ddim", steps=5, start=start, start_time=0.5, coordinates=c, final="min").samples
        for c in ("native", "ve", "flow", "angle")
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-10, atol=1e-12)


# --- prediction types, dtypes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [sds.VP(), sds.EDM(), sds.DiscreteVP(TABLE)], ids=["vp", "edm", "table"])
@pytest.mark.parametrize("sampler", ALL)
def test_a_sampler_cannot_tell_what_the_model_predicts(sampler, process):
    run = {"steps": 10, "num_samples": 4, "seed": 3, "spacing": "logsnr"}
    expected = sds.sample(sds.grid_mixture(process, prediction="epsilon"), sampler, **run).samples
    for kind in ("sample", "v", "score", "flow"):
        found = sds.sample(sds.grid_mixture(process, prediction=kind), sampler, **run).samples
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("coordinates", ["native", "angle", "flow"])
def test_rectified_flow_starts_at_alpha_zero(sampler, coordinates):
    process = sds.RectifiedFlow()
    model = sds.GaussianModel([0.5, -0.3], 0.0, process, prediction="flow")
    run = {"steps": 10, "num_samples": 4, "coordinates": coordinates}
    result, events = evaluated(lambda keep: sds.sample(model, sampler, callback=keep, **run))
    assert events[0][0].t == 1.0
    assert float(events[0][0].alpha) == 0.0
    assert torch.isfinite(result.samples).all()
    if coordinates == "flow" or sampler in ("ddim", "ddpm"):
        expected = torch.tensor([0.5, -0.3], dtype=torch.float64).expand(4, 2)
        torch.testing.assert_close(result.samples, expected, rtol=0, atol=1e-10)
    for kind in ("v", "sample"):
        other = sds.GaussianModel([0.5, -0.3], 0.0, process, prediction=kind)
        torch.testing.assert_close(sds.sample(other, sampler, **run).samples, result.samples, rtol=1e-8, atol=1e-8)
    with pytest.raises(sds.ConversionError, match="alpha = 0"):
        sds.sample(sds.GaussianModel([0.5, -0.3], 0.1, process, prediction="epsilon"), sampler, **run)


@pytest.mark.parametrize("model_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_state_is_float32_at_least_and_the_model_gets_its_own_dtype(model_dtype):
    seen = set()

    def function(x, t):
        seen.add(x.dtype)
        return x

    model = sds.FunctionModel(function, sds.VP(), "epsilon", (3,), dtype=model_dtype)
    expected = torch.float64 if model_dtype == torch.float64 else torch.float32
    assert sds.sample(model, "heun", steps=3).samples.dtype == expected
    assert seen == {model_dtype}
    assert sds.sample(model, "heun", steps=3, dtype=torch.float64).samples.dtype == torch.float64
    with pytest.raises(sds.UsageError, match="dtype"):
        sds.sample(model, "heun", steps=3, dtype=torch.float16)


# --- Langevin dynamics ------------------------------------------------------------------------------------------------


def test_the_funnels_score_is_the_gradient_of_its_log_density():
    model = sds.FunnelModel(dimension=6)
    x = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    v, rest = x[:, :1], x[:, 1:]
    normal = torch.distributions.Normal
    log_prob = normal(0.0, 3.0).log_prob(v).sum(1) + normal(0.0, torch.exp(0.5 * v)).log_prob(rest).sum(1)
    (expected,) = torch.autograd.grad(log_prob.sum(), x)
    torch.testing.assert_close(model.log_prob(x), log_prob)
    torch.testing.assert_close(model.score(x), expected)
    output = model.predict(x.detach(), 0.0)
    torch.testing.assert_close(output.value, expected)
    torch.testing.assert_close(output.log_density, log_prob.detach())


def test_euler_maruyama_on_langevin_dynamics_is_the_unadjusted_langevin_algorithm():
    """x <- x + h/2 s(x) + sqrt(h) z. On N(0, s^2) its stationary variance is s^2 / (1 - h / (4 s^2)) exactly."""
    h, steps, count, width = 0.5, 40, 8_000, 0.8
    process = sds.LangevinSDE(lambda x: -x / width**2, duration=h * steps)

    def model(size):  # independent chains in one sample, as noise is drawn faster for few long samples
        return sds.FunctionModel(lambda x, t: -x / width**2, process, "score", (size,), dtype=torch.float64)

    one = sds.sample(model(1), "euler-maruyama", times=[20.0, 19.5], start=torch.ones(1, 1), log_probs=True)
    z = float(sds.NormalSource(0, [0], (1,)).draw(1, 1))
    assert float(one.samples) == pytest.approx(1 - h / 2 / width**2 + math.sqrt(h) * z, rel=1e-6)
    samples = sds.sample(model(100), "euler-maruyama", steps=steps, num_samples=count // 100).samples
    stationary = width**2 / (1 - h / (4 * width**2))
    assert abs(float(samples.var()) / stationary - 1) < 4 * math.sqrt(2 / count)
    assert abs(float(samples.mean())) < 4 * math.sqrt(stationary / count)
    assert abs(float(samples.var()) / width**2 - 1) > 4 * math.sqrt(2 / count)


def test_the_funnel_runs_under_euler_maruyama_with_either_noise():
    for noise in ("independent", "brownian"):
        result = sds.sample(sds.FunnelModel(dimension=3), "euler-maruyama", steps=300, num_samples=4, noise=noise)
        assert result.nfe == 300
        assert torch.isfinite(result.samples).all()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_samplers_that_need_alpha_and_sigma_refuse_langevin_dynamics(sampler):
    with pytest.raises(sds.UsageError, match=f"{sampler}: .*LangevinSDE has no"):
        sds.sample(sds.FunnelModel(), sampler, steps=5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"coordinates": "ve"}, "coordinates='native'"),
        ({"spacing": "karras"}, "spacing='linspace'"),
    ],
)
def test_words_that_need_marginals_are_refused_on_langevin_dynamics(words, message):
    with pytest.raises(sds.UsageError, match=message):
        sds.sample(sds.FunnelModel(), "euler-maruyama", steps=5, **words)
    with pytest.raises(sds.UsageError, match="no sigma"):
        sds.sample(sds.FunnelModel(), "euler-maruyama", sigmas=[1.0, 0.5])


# --- words that cannot be run -----------------------------------------------------------------------------------------

BAD = [
    ({"steps": 0}, "steps must be a whole number of 1 or more, not 0"),
    ({"steps": -3}, "steps must be a whole number of 1 or more, not -3"),
    ({"steps": 2.5}, "steps must be a whole number of 1 or more, not 2.5"),
    ({"steps": True}, "steps must be a whole number of 1 or more, not True"),
    ({"steps": "ten"}, "steps must be a whole number"),
    ({"nfe": 0}, "nfe must be a whole number of 1 or more, not 0"),
    ({"nfe": 1.5}, "nfe must be a whole number"),
    ({}, r"euler needs steps=\.\.\. .* or nfe="),
    ({"steps": 5, "nfe": 5}, "pass one of .* not steps and nfe"),
    ({"steps": 5, "times": [1.0, 0.5]}, "pass one of .* not steps and times"),
    ({"times": [1.0, 0.5], "sigmas": [1.0, 0.5]}, "not times and sigmas"),
    ({"sampler": "eulr", "steps": 5}, "unknown sampler 'eulr'; did you mean .*'euler'"),
    ({"sampler": 3, "steps": 5}, "sampler must be a name, a Sampler, a Recipe or a SolverTable, not 3"),
    ({"steps": 5, "strength": 1}, "sampler 'euler' has no option 'strength'.*it has no options"),
    ({"sampler": "ddim", "steps": 5, "etta": 1.0}, "did you mean 'eta'"),
    ({"sampler": "ddim", "steps": 5, "eta": "big"}, "option 'eta' must be float, not 'big'"),
    ({"sampler": "ddim", "steps": 5, "eta": True}, "option 'eta' must be float, not True"),
    ({"sampler": "ddim", "steps": 5, "eta": math.nan}, "must be a number, not NaN"),
    ({"sampler": "ddim", "steps": 5, "eta": -0.1}, r"eta must lie in \[0, "),
    ({"sampler": "euler-maruyama", "steps": 5, "eta": -0.1}, "eta must be 0 or more, not -0.1"),
    ({"sampler": "ddpm", "steps": 5, "variance": "none"}, '"posterior" | "beta"'),
    ({"sampler": "rk45", "max_nfe": 10.5}, "option 'max_nfe' must be int, not 10.5"),
    ({"times": [1.0, 0.5, 0.6]}, r"times: .* entry 2 \(0.6\) does not lie below entry 1 \(0.5\)"),
    ({"times": [0.1, 1.0]}, "fall strictly from noise to data"),
    ({"times": [1.0, 1.0]}, "fall strictly"),
    ({"times": [1.0, math.nan]}, "two or more finite numbers"),
    ({"times": [math.inf, 0.5]}, "two or more finite numbers"),
    ({"times": [1.0]}, "two or more"),
    ({"times": []}, "two or more"),
    ({"times": 3.0}, "times must be a list of numbers"),
    ({"times": ["a", "b"]}, "times must be a list of numbers"),
    ({"times": [1.5, 0.5]}, "times must lie between 0 and 1"),
    ({"times": [1.0, -0.5]}, "times must lie between 0 and 1"),
    ({"sigmas": [1e9, 1.0]}, "largest sigma/alpha, 15[0-9]"),
    ({"sigmas": [1.0, -1.0]}, "sigmas must lie between 0"),
    ({"sigmas": [0.5, 1.0]}, "sigmas: a grid must fall"),
    ({"steps": 5, "spacing": "kerras"}, "unknown spacing 'kerras'; did you mean 'karras'"),
    ({"times": [1.0, 0.5], "spacing": "karras"}, "spacing and times contradict"),
    ({"steps": 5, "spacing": "karras", "spacing_options": {"roh": 5.0}}, "did you mean 'rho'"),
    ({"steps": 5, "spacing": "karras", "spacing_options": {"rho": 0.0}}, "rho must not be 0"),
    ({"steps": 5, "coordinates": "vee"}, "unknown coordinates 'vee'.*native, ve, flow, angle"),
    ({"steps": 5, "noise": "white"}, "unknown noise source 'white' .*'brownian'"),
    ({"steps": 5, "final": "one"}, "final must be 'zero' or 'min', not 'one'"),
    ({"steps": 5, "seed": -1}, r"seed must be a whole number from 0 to 2\^64 - 1, not -1"),
    ({"steps": 5, "seed": 1.5}, "seed must be a whole number"),
    ({"steps": 5, "seed": True}, "seed must be a whole number"),
    ({"steps": 5, "num_samples": 0}, "num_samples must be a whole number of 1 or more, not 0"),
    ({"steps": 5, "num_samples": 2.0}, "num_samples must be a whole number"),
    ({"steps": 5, "batch_size": 0}, "batch_size must be a whole number of 1 or more, not 0"),
    ({"steps": 5, "first_index": -1}, "first_index must be a whole number of 0 or more, not -1"),
    ({"steps": 5, "start": torch.zeros(3, 2), "num_samples": 1}, r"start must have shape \(1, 2\), not \(3, 2\)"),
    ({"steps": 5, "start_time": 0.5}, "pass start as well"),
    ({"steps": 5, "start": torch.zeros(1, 2), "start_time": 2.0}, "start time must lie above"),
    ({"steps": 5, "start": torch.zeros(1, 2), "start_time": 1e-4}, "start time must lie above"),
    ({"steps": 5, "condition": 3}, "unconditional and takes no condition"),
    ({"steps": 5, "guidance_scale": 2.0}, "guidance_scale does not apply"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_call_that_cannot_be_run_says_why(mixture, words, message):
    words = {"sampler": "euler", **words}
    with pytest.raises(sds.UsageError, match=message):
        sds.sample(mixture, words.pop("sampler"), **words)


def test_the_largest_eta_of_ddim_is_named_and_accepted(mixture):
    """1 / sqrt(1 - e^(2 (lambda_t - lambda_s))) of the step where the most noise comes in."""
    times = [1.0, 0.6, 0.3]
    b = [0.1 * t + 9.95 * t * t for t in times]
    # e^(-2 lambda) = e^B - 1
    shares = [1 - math.expm1(after) / math.expm1(before) for before, after in itertools.pairwise(b)]
    largest = 1 / math.sqrt(max(shares))
    with pytest.raises(sds.UsageError, match=rf"ddim: eta must lie in \[0, {largest:.6g}\]"):
        sds.sample(mixture, "ddim", times=times, eta=1.2 * largest)
    assert torch.isfinite(sds.sample(mixture, "ddim", times=times, eta=largest).samples).all()


@pytest.mark.parametrize("process", [sds.RectifiedFlow(), sds.CosineVP()])
@pytest.mark.parametrize(
    ("words", "message"), [({"coordinates": "ve"}, "alpha = 0"), ({"spacing": "karras"}, "finite sigma/alpha")]
)
def test_words_that_need_a_signal_at_the_start_are_refused_where_alpha_is_zero(process, words, message):
    model = sds.grid_mixture(process, prediction="v")
    with pytest.raises(sds.UsageError, match=message):
        sds.sample(model, "euler", steps=5, **words)


def test_whole_numbers_and_lists_keep_their_digits_in_analytic_models():
    """A Python list is read in float64: 0.3 is 0.3 and not its float32 neighbour."""
    model = sds.GaussianModel([0.3], [0.1], sds.VP())
    assert float(model.means) == 0.3
    assert float(model.covariances) == 0.1


def test_a_result_says_how_it_was_made(mixture):
    result = sds.sample(mixture, "ddim", steps=5, eta=0.3, seed=12, num_samples=2, first_index=7)
    assert (result.seed, result.indices, result.model_name, result.revision) == (12, [7, 8], "mixture", None)
    assert result.recipe.as_dict() == {
        "sampler": "ddim",
        "options": {"eta": 0.3},
        "steps": 5,
        "spacing": "even",
        "coordinates": "native",
        "noise": "independent",
        "final": "zero",
    }


# --- edges that a first version got wrong -----------------------------------------------------------------------------


def test_a_half_precision_output_of_a_single_precision_model_becomes_single():
    """As under autocast: the network takes float32 and answers in bfloat16."""
    seen = []

    @sds.sampler("spy", order=1)
    def spy(x, path):
        """Keep the dtypes of what the model said."""
        for now, then in path.steps:
            out = yield x, now
            seen.extend([out.eps.dtype, out.velocity.dtype])
            x = out.x + (then.time - now.time) * out.velocity
        return x

    model = sds.FunctionModel(lambda x, t: x.bfloat16(), sds.EDM(), "epsilon", (3,))
    assert sds.sample(model, spy, steps=2).samples.dtype == torch.float32
    assert set(seen) == {torch.float32}


def test_a_model_that_answers_in_another_shape_is_refused():
    model = sds.FunctionModel(lambda x, t: x.sum(1, keepdim=True), sds.VP(), "epsilon", (3,))
    with pytest.raises(sds.ModelError, match=r"shape \(1, 1\) for a state of \(1, 3\)"):
        sds.sample(model, "euler", steps=2)


def test_a_callback_cannot_change_the_shape_of_the_state(mixture):
    def cut(event):
        event.x = event.x[:0]

    with pytest.raises(sds.UsageError, match="callback replaced"):
        sds.sample(mixture, "euler", steps=2, callback=cut)


def test_a_process_without_marginals_needs_a_score():
    process = sds.LangevinSDE(lambda x: -x)
    model = sds.FunctionModel(lambda x, t: -x, process, "epsilon", (2,))
    with pytest.raises(sds.UsageError, match="must predict the score"):
        sds.sample(model, "euler-maruyama", steps=2)


@pytest.mark.parametrize("coordinates", ["native", "ve", "flow", "angle"])
def test_ddpm_with_beta_variance_keeps_standard_normal_data_in_all_coordinates(coordinates):
    """Ho et al. 2020, section 3.2: beta is the exact variance for N(0, I), so every marginal stays N(0, 1)."""
    model = sds.GaussianModel([0.0] * 100, 1.0, sds.VP())  # 100 numbers a sample: noise is drawn faster so
    words = {"times": np.linspace(1.0, 0.05, 20), "final": "min", "coordinates": coordinates, "variance": "beta"}
    samples = sds.sample(model, "ddpm", num_samples=40, **words).samples
    assert abs(samples.std().item() - 1) < 4 / math.sqrt(2 * 4000)


def test_any_sampler_runs_a_function_of_state_and_time():
    model = sds.FunctionModel(lambda x, t: x * t.clamp(max=1), sds.VP(), "epsilon", (3,))
    for name in ALL:
        words = {} if name == "rk45" else {"steps": 4}
        assert sds.sample(model, name, num_samples=2, **words).samples.shape == (2, 3)


def test_gradients_reach_the_model_through_the_sampler():
    """One Euler step in ve coordinates from x = s e with eps = a x / s lands on x (1 - a), whose slope in a is -x."""
    a = torch.tensor(0.3, requires_grad=True)
    model = sds.FunctionModel(lambda x, t: a * x / t, sds.EDM(), "epsilon", (1,))
    result = sds.sample(model, "euler", sigmas=[80.0, 0.0], coordinates="ve", gradients=True, seed=4)
    result.samples.sum().backward()
    start = 80.0 * sds.NormalSource(4, [0], (1,)).draw(0)
    torch.testing.assert_close(a.grad, -start.sum(), rtol=1e-5, atol=1e-5)
    assert not sds.sample(model, "euler", steps=2).samples.requires_grad


def test_several_points_in_one_yield_are_announced_counted_and_recorded(mixture):
    @sds.sampler("pairs", order=1)
    def pairs(x, path):
        """Ask at two points at once, walk with the first."""
        for now, then in path.steps:
            here, _ = yield [(x, now), (x + 1, now)]
            x = here.x + (then.time - now.time) * here.velocity
        return x

    seen = []
    result = sds.sample(mixture, pairs, steps=3, num_samples=2, trajectory=True, callback=seen.append)
    assert result.nfe == len(seen) == 6
    assert result.trajectory.states.shape == (7, 2, 2)
    torch.testing.assert_close(result.samples, sds.sample(mixture, "euler", steps=3, num_samples=2).samples)
    flag = threading.Event()
    flag.set()
    with pytest.raises(sds.Cancelled):
        sds.sample(mixture, pairs, steps=3, cancel=flag)


def test_the_default_device_of_torch_does_not_matter(mixture):
    expected = sds.sample(mixture, "ddpm", steps=3, seed=1).samples
    torch.set_default_device("meta")
    try:
        noise = sds.NormalSource(1, [0], (2,)).draw(0)
    finally:
        torch.set_default_device("cpu")
    assert noise.device.type == "cpu"
    torch.testing.assert_close(sds.sample(mixture, "ddpm", steps=3, seed=1).samples, expected)


def test_a_model_that_changes_its_answers_shape_is_noticed_at_every_evaluation():
    """A later answer that would broadcast is refused, and one that becomes an Output is read as such."""
    asked = []

    def shrinks(x, t):
        asked.append(len(x))
        return 0.5 * (x if len(asked) < 3 else x[:1])

    model = sds.FunctionModel(shrinks, sds.VP(), "epsilon", (3,))
    with pytest.raises(sds.ModelError, match=r"\(1, 3\).*\(4, 3\)"):
        sds.sample(model, "euler", steps=6, num_samples=4)
    assert len(asked) == 3


def test_infinite_options_are_refused_before_the_model_is_asked():
    with pytest.raises(sds.UsageError, match="'eta' must be finite"):
        sds.sample(sds.grid_mixture(sds.VP()), "euler-maruyama", steps=4, eta=math.inf)


def test_a_sampler_that_crashes_is_not_taken_for_one_that_refuses():
    @sds.sampler("crash", order=None)
    def crash(x, path):
        """Fails once it has asked."""
        out = yield x, path.points[0]
        return out.x0 + math.log(-1.0)

    with pytest.raises(ValueError, match=r"domain|positive"):
        sds.sample(sds.grid_mixture(sds.VP()), crash, steps=4)


def test_a_samplers_resources_are_released_when_the_run_fails():
    closed = []

    @sds.sampler("holder", order=None)
    def holder(x, path):
        """Holds something."""
        try:
            while True:
                yield x, path.points[0]
        finally:
            closed.append(True)

    def stop(event):
        if event.evaluation == 2:
            raise sds.Cancelled("enough")

    with pytest.raises(sds.Cancelled):
        sds.sample(sds.grid_mixture(sds.VP()), holder, steps=4, callback=stop)
    assert closed == [True]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda x, now: x, r"not \(Tensor\)"),
        (lambda x, now: (x, now.time), r"not \(Tensor, float\)"),
        (lambda x, now: [(x, now), x], r"not \(Tensor\)"),
    ],
)
def test_a_malformed_request_is_answered_with_what_it_should_be(value, message):
    @sds.sampler("mistake", order=None)
    def mistake(x, path):
        """Yields something else."""
        yield value(x, path.points[0])
        return x

    with pytest.raises(sds.PluginError, match=message):
        sds.sample(sds.grid_mixture(sds.VP()), mistake, steps=2)


def test_a_sampler_that_returns_nothing_is_told_to():
    @sds.sampler("forgetful", order=None)
    def forgetful(x, path):
        """Returns nothing."""
        yield x, path.points[0]

    with pytest.raises(sds.PluginError, match="is `return x` missing"):
        sds.sample(sds.grid_mixture(sds.VP()), forgetful, steps=2)


def test_samples_far_outside_the_data_are_not_silent():
    """Heun's method in two steps over all of sigma's range; the mixture lies within [-3, 3]."""
    model = sds.grid_mixture(sds.VP())
    model.data_range = (-3.0, 3.0)
    with pytest.warns(UserWarning, match="heun's samples lie far outside"):
        sds.sample(model, "heun", steps=2, num_samples=4)
