"""UniPC: its equations on paper, orders, identities, the corrector on other predictors, edges."""

import itertools
import math

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from sdesamplers_plugins.unipc import weights

import sdesamplers as sds
from sdesamplers.testing.problems import PROCESSES, Transport, run

VARIANTS = ["bh1", "bh2", "vary_coeff"]


def matching(r, h, variant):
    """The paper's rho for D_m / r_m in data prediction: R rho = phi / B, with rho = 1/2 for a single one."""
    if len(r) == 1 and variant != "vary_coeff":
        return [0.5], h if variant == "bh1" else -math.expm1(-h)
    # int_0^1 e^{h (v - 1)} h v^k dv: the exact moment of each power of (lambda - lambda_t) / h
    v, w = np.polynomial.legendre.leggauss(24)
    v, w = (v + 1) / 2, w / 2
    moments = [float(np.sum(w * h * np.exp(h * (v - 1)) * v**k)) for k in range(1, len(r) + 1)]
    return np.linalg.solve(np.vander(r, increasing=True).T, moments), 1.0


def by_hand(model, x, times, order, variant, correct):
    """UniP-p and UniC-p in data prediction on the model's own process, differences D_m = m_m - m_0 and all."""
    process, history = model.process, []

    def x0(x, t):
        return (x - float(process.sigma(t)) * model.predict(x, t)) / float(process.alpha(t))

    def lam(t):
        return math.log(float(process.alpha(t)) / float(process.sigma(t)))

    def step(x, t, s, nodes, values):
        h = lam(s) - lam(t)
        base = float(process.sigma(s)) / float(process.sigma(t)) * x
        alpha = float(process.alpha(s))
        first, others = values[0], values[1:]
        out = base - alpha * math.expm1(-h) * first
        if others:
            r = [(lam(u) - lam(t)) / h for u in nodes[1:]]
            rho, scale = matching(r, h, variant)
            out = out + alpha * scale * sum(c * (m - first) / q for c, m, q in zip(rho, others, r, strict=True))
        return out

    value = x0(x, times[0])
    for t, s in itertools.pairwise(times):
        history = [(t, value), *history][:order]
        nodes, values = [list(column) for column in zip(*history, strict=True)]
        guess = step(x, t, s, nodes, values)
        value = x0(guess, s) if s != times[-1] else None
        if correct and value is not None:
            guess = step(x, t, s, [*nodes, s], [*values, value])
        elif value is None:
            return guess
        x = guess
    return x


def start(count=5):
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


TIMES = [0.95, 0.8, 0.6, 0.5, 0.3, 0.2, 0.1]


@pytest.mark.parametrize("coordinates", ["native", "flow"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["unip", "unipc"])
def test_unip_and_unipc_follow_the_paper(name, variant, order, coordinates):
    model, x = sds.grid_mixture(sds.VP()), start()
    expected = by_hand(model, x, TIMES, order, variant, correct=name == "unipc")
    words = {"times": TIMES, "start": x, "num_samples": 5, "coordinates": coordinates}
    found = sds.sample(model, name, order=order, variant=variant, **words).samples
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_weights_of_two_predictions_by_hand():
    """h = 1 and a node at r = -1/2: B/(2 r) = -B, and what is left of 1 - e^-1."""
    total = 1 - math.exp(-1)
    assert weights([0.0, -0.5], 0.0, 1.0, 1.0, "bh1") == pytest.approx([total + 1, -1])
    assert weights([0.0, -0.5], 0.0, 1.0, 1.0, "bh2") == pytest.approx([2 * total, -total])
    # int_0^1 e^{u - 1} (-2 u) du = -2 / e
    assert weights([0.0, -0.5], 0.0, 1.0, 1.0, "vary_coeff") == pytest.approx([total + 2 / math.e, -2 / math.e])
    # the corrector's node is the end, r = 1
    assert weights([1.0, 0.0], 0.0, 1.0, 1.0, "bh2") == pytest.approx([total / 2, total / 2])
    noise = math.e - 1
    assert weights([1.0, 0.0], 0.0, 1.0, -1.0, "bh1") == pytest.approx([0.5, noise - 0.5])


# --- Order ------------------------------------------------------------------------------------------------------------


def grid(steps, order):
    """Equal steps of lambda after a run-up from a step so small that lower-order starting values do not show."""
    small, sizes = steps ** (-(order - 1) / 2), []
    while small < 1:
        sizes.append(small)
        small *= 1.5
    edges = np.concatenate([[0.0], np.cumsum([*sizes, *np.ones(steps)])])
    return -1.5 + 3.0 * edges / edges[-1]


def measured(name, want, process="vp", counts=(24, 48, 96), **options):
    problem, errors = Transport(PROCESSES[process]), []
    for n in counts:
        times = problem.time(grid(n, want))
        x, exact = problem.ends(times)
        found = run(problem.model, sds.samplers()[name], x, times=times, options=options)
        errors.append(float((found - exact).square().mean().sqrt()))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


CORRECTED = [(1, "bh1"), (1, "bh2"), (2, "bh1"), (2, "vary_coeff"), (3, "bh2"), (4, "bh2")]


@pytest.mark.parametrize(
    ("order", "variant", "prediction"),
    mostly_slow(
        [(*each, prediction) for prediction in ("data", "noise") for each in CORRECTED],
        keep=[(1, "bh2", "data"), (2, "bh1", "noise"), (2, "vary_coeff", "data"), (3, "bh2", "data")],
    ),
)
def test_the_corrector_raises_the_order_by_one(order, variant, prediction):
    """Zhao et al. 2023, theorem 3.1 and corollary 3.2, on uneven grids against quantile transport."""
    options = {"order": order, "variant": variant, "prediction": prediction}
    assert measured("unip", order, **options) == pytest.approx(order, abs=0.25)
    assert measured("unipc", order + 1, **options) == pytest.approx(order + 1, abs=0.35)


@pytest.mark.parametrize(
    ("predictor", "order"), [("euler", 1), ("ddim", 1), ("dpmpp-2m", 2), ("dpm-solver-2m", 2), ("dpmpp-3m", 3)]
)
def test_the_corrector_raises_the_order_of_other_predictors(predictor, order):
    for process in ("vp", "flow"):
        found = measured("unic", order + 1, process, predictor=predictor, order=order)
        assert found == pytest.approx(order + 1, abs=0.35)


def test_corrected_predictors_run_in_their_own_variables():
    """deis interpolates eps in time, the corrector x0 in lambda; 24 steps are nearer with it than without."""
    if "deis" not in sds.samplers():
        pytest.skip("deis is not installed")
    assert measured("unic", 4, predictor="deis", order=3) > 3.5


# --- Identities -------------------------------------------------------------------------------------------------------


def pair(model, *calls, **words):
    common = {"num_samples": 4, "seed": 3, "steps": 12, **words}
    return [sds.sample(model, name, **common, **options).samples for name, options in calls]


MODELS = [
    sds.grid_mixture(sds.VP()),
    sds.grid_mixture(sds.EDM(), prediction="sample"),
    sds.grid_mixture(sds.RectifiedFlow(), prediction="flow"),
]


@pytest.mark.parametrize("model", MODELS, ids=["vp", "edm", "flow"])
def test_unic_on_unip_is_unipc_and_without_corrector_unip_is_left(model):
    ours, theirs = pair(model, ("unic", {"predictor": "unip"}), ("unipc", {}))
    assert torch.equal(ours, theirs)
    # no evaluation at the end of a path of one step, so nothing to correct
    for options in ({"order": 1}, {"order": 3, "variant": "bh1"}):
        ours, theirs = pair(model, ("unipc", options), ("unip", options), steps=1)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("model", MODELS, ids=["vp", "edm", "flow"])
def test_the_predictor_is_ddim_dpmpp_2m_and_exponential_adams_bashforth(model):
    for unip, other, options in (
        ({"order": 1}, "ddim", {}),
        ({"order": 1, "prediction": "noise", "variant": "bh1"}, "ddim", {}),
        ({"order": 2, "variant": "bh2"}, "dpmpp-2m", {}),
        ({"order": 2, "variant": "bh2", "prediction": "noise"}, "dpm-solver-2m", {}),
        ({"order": 2, "variant": "vary_coeff"}, "dpmpp-2m", {"solver": "heun"}),
        ({"order": 3, "variant": "vary_coeff"}, "dpmpp-3m", {}),
        ({"order": 3, "variant": "vary_coeff", "lower_order_final": False}, "dpmpp-3m", {"lower_order_final": False}),
    ):
        ours, theirs = pair(model, ("unip", unip), (other, options), coordinates="flow")
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_three_predictions_leave_nothing_to_the_variant():
    """From the third step on the matching conditions fix every weight: only the start differs."""
    assert weights([0.0, -0.3, -0.9], 0.0, 0.5, 1.0, "bh1") == weights([0.0, -0.3, -0.9], 0.0, 0.5, 1.0, "bh2")
    model = MODELS[0]
    for variant in ("bh1", "vary_coeff"):
        a, b = pair(model, ("unipc", {"order": 3}), ("unipc", {"order": 3, "variant": variant}))
        assert not torch.allclose(a, b, atol=1e-8)


def test_lower_order_final_counts_down_into_sigma_zero_alone():
    model = MODELS[0]
    sigmas = [5.0, 3.0, 2.0, 1.0, 0.5]
    for name in ("unip", "unipc"):
        calls = [(name, {"order": 3, "lower_order_final": last}) for last in (True, False)]
        assert torch.equal(*pair(model, *calls, steps=None, sigmas=sigmas))
        assert not torch.allclose(*pair(model, *calls, steps=None, sigmas=[*sigmas, 0.0]), atol=1e-5)


def test_an_edit_of_the_state_is_kept_by_the_corrector():
    """In place or as a new tensor, it moves the state that the corrector goes on from by just as much."""
    model = sds.GaussianModel([0.7], 0.36, sds.VP())
    times = [float(t) for t in sds.VP().time_at_log_snr(2 * np.linspace(-1.5, 1.5, 41))]
    common = {"times": times, "num_samples": 1, "seed": 1}

    def moved(event):
        if event.evaluation == 38:
            event.x = event.x + 0.05

    def in_place(event):
        if event.evaluation == 38:
            event.x += 0.05

    for name in ("unipc", "unic"):
        plain, new, same = (sds.sample(model, name, callback=c, **common).samples for c in (None, moved, in_place))
        assert torch.equal(new, same)
        assert 0.6 < float((new - plain).abs().max()) / 0.05 < 1.4


# --- Ends and edges ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["unip", "unipc", "unic"])
def test_sigma_zero_and_alpha_zero_are_reached_without_nan(name, variant):
    """UniPC-bh1 elsewhere gives NaN where the last sigma is 0, since B(h) = h is infinite there."""
    point = sds.GaussianModel([0.7, -0.4], 0.0, sds.VP())
    for prediction in ("data", "noise"):
        options = {"variant": variant, "prediction": prediction, "order": 3}
        for model, steps, final in itertools.product(MODELS, (1, 2, 3, 5), ("zero", "min")):
            assert sds.sample(model, name, steps=steps, final=final, num_samples=2, **options).samples.isfinite().all()
        samples = sds.sample(point, name, steps=7, num_samples=2, coordinates="ve", **options).samples
        torch.testing.assert_close(samples, torch.tensor([[0.7, -0.4]] * 2, dtype=torch.float64), rtol=0, atol=1e-10)


def test_the_step_out_of_pure_noise_is_corrected_by_the_trapezoid_in_alpha_over_sigma():
    """From alpha = 0: x_s = sigma_s [x / sigma_t + rho (x0 + x0') / 2] with rho = alpha_s / sigma_s, on paper."""
    model = MODELS[2]
    x, (t, s, u) = start(), (1.0, 0.6, 0.5)
    first = model.posterior_mean(x, t)
    second = model.posterior_mean(0.6 * x + 0.4 * first, s)
    middle = 0.6 * x + 0.4 * (first + second) / 2
    h = math.log((0.5 / 0.5) / (0.4 / 0.6))
    expected = 0.5 / 0.6 * middle - 0.5 * math.expm1(-h) * second
    found = sds.sample(model, "unipc", times=[t, s, u], start=x, num_samples=5).samples
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("unip", {"order": 0}, "from 1 to 6"),
        ("unipc", {"order": 7}, "from 1 to 6"),
        ("unic", {"predictor": "heun"}, "one evaluation per step"),
        ("unic", {"predictor": "ddpm"}, "one evaluation per step"),
        ("unic", {"predictor": "nobody"}, "one evaluation per step"),
        ("unic", {"predictor": "unic"}, "without a corrector"),
        ("unic", {"predictor": "unipc"}, "without a corrector"),
        ("unic", {"predictor": "dpm-fast"}, "at a grid point"),
    ],
)
def test_options_out_of_range_are_refused(name, options, words):
    with pytest.raises(sds.UsageError, match=words):
        sds.sample(MODELS[0], name, steps=4, num_samples=1, **options)


def test_every_predictor_that_is_listed_can_be_corrected():
    with pytest.raises(sds.UsageError, match="one evaluation per step") as refused:
        sds.sample(MODELS[0], "unic", predictor="nobody", steps=4)
    listed = str(refused.value).rpartition("valid are ")[2].split(", ")
    assert {"euler", "ddim", "dpmpp-2m", "deis"} <= set(listed)
    assert not {"abm", "dpm-solver-v3", "plms", "pndm"} & set(listed)
    for name in listed:
        if sds.samplers()[name].plugin == "local":  # another test's
            continue
        assert sds.sample(MODELS[0], "unic", predictor=name, steps=4, num_samples=1).nfe == 4


def test_a_predictor_that_evaluates_off_the_grid_is_refused():
    @sds.sampler("elsewhere", order=1)
    def elsewhere(x, path):
        """Evaluates at a point that is not the grid's."""
        for now, then in path.steps:
            out = yield x, path.at(now.time)
            x = out.step_to(then)
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdesamplers_plugins.unipc.samplers", lambda: {"elsewhere": elsewhere})
        with pytest.raises(sds.UsageError, match="does not evaluate the model exactly once at each grid point"):
            sds.sample(MODELS[0], "unic", predictor="elsewhere", steps=4, num_samples=1)


@pytest.mark.slow
def test_high_orders_stay_accurate_over_500_float32_steps():
    model = sds.GaussianModel([0.7], 0.36, sds.VP(), dtype=torch.float32)
    x = torch.linspace(-2, 2, 5)[:, None]
    common = {"steps": 500, "num_samples": 5, "spacing": "logsnr"}
    for order in (3, 5):
        single, double = (
            sds.sample(model, "unipc", order=order, start=x.to(d), dtype=d, **common).samples.double()
            for d in (torch.float32, torch.float64)
        )
        assert float((single - double).abs().max()) < 1e-4
