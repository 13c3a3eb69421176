"""Linear multistep samplers: orders by option, identities, weights worked by hand, other libraries' bugs."""

import math

import diffusers
import numpy as np
import pytest
import torch
from lanes import mostly_slow
from process_cases import TABLE
from sdesamplers_plugins.multistep import EQUAL_STEPS, adams_bashforth

import sdesamplers as sds
from sdesamplers.path.noise import NormalSource
from sdesamplers.testing.problems import Transport, measure_order, run

NAMES = ("ab", "abm", "lms", "ipndm", "ipndm-v", "pndm", "plms", "deis")
ROOT = np.sqrt(TABLE)
ZERO_SNR = ((ROOT - ROOT[-1]) * ROOT[0] / (ROOT[0] - ROOT[-1])) ** 2  # Lin et al. 2024, algorithm 1


def spec(name):
    return sds.samplers()[name]


# --- orders ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_equal_step_weights_lose_their_order_on_uneven_grids_and_true_weights_do_not():
    """The bug of several libraries' variable-step Adams methods; `ipndm` has these weights because its paper does."""
    for name, order in (("ipndm", 1), ("ipndm-v", 4)):
        assert measure_order(spec(name), sds.VP(), order=order) == pytest.approx(order, abs=0.2)


def test_equal_step_weights_are_the_true_ones_on_even_grids_alone():
    problem = Transport(sds.VP())
    times = problem.time(-np.log(np.linspace(4.0, 0.3, 21)))
    start, _ = problem.ends(times)
    ends = [run(problem.model, spec(name), start, times=times) for name in ("ipndm", "ipndm-v")]
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)  # equal steps of sigma/alpha
    times = problem.time(-np.log(np.geomspace(4.0, 0.3, 21)))
    ends = [run(problem.model, spec(name), start, times=times) for name in ("ipndm", "ipndm-v")]
    assert not torch.allclose(*ends, rtol=0, atol=1e-3)


def misplaced_bracket(h, h1, h2):
    """Third-order weights as a widely copied iPNDM-v has them: a product swallowed by the bracket before it."""
    temp = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    return [(2 + h / h1) / 2 + temp, -(h / h1) / 2 - (1 + h1 / h2) * temp, temp * h1 / h2]


def test_the_published_code_of_ipndm_v_has_a_misplaced_bracket():
    """Its weights integrate a parabola over equal steps only; ours over any."""
    for h, h1, h2 in ((1.0, 1.0, 1.0), (1.0, 1.5, 1.0)):
        nodes = np.array([0.0, -h1, -h1 - h2])
        points = [type("P", (), {"ratio": r})() for r in nodes]
        ours = np.array(adams_bashforth(points, type("P", (), {"ratio": h})())) / h
        theirs = np.array(misplaced_bracket(h, h1, h2))
        assert ours @ nodes**2 == pytest.approx(h**2 / 3, rel=1e-13)
        assert (abs(theirs @ nodes**2 - h**2 / 3) < 1e-13) == (h == h1 == h2)


# --- weights by hand --------------------------------------------------------------------------------------------------


def test_equal_steps_give_the_published_weights():
    for n, published in enumerate(EQUAL_STEPS, 1):
        points = [type("P", (), {"ratio": 5.0 + 0.5 * k})() for k in range(n)]
        found = adams_bashforth(points, type("P", (), {"ratio": 4.5})())
        assert found == pytest.approx([-0.5 * w for w in published], rel=1e-12)


def cubic_noise(process, coefficients):
    """A model whose noise is a polynomial in sigma/alpha, whatever the state."""

    def predict(x, t, condition=None):
        return torch.full_like(x, float(np.polyval(coefficients, float(process.ratio(t)))))

    return sds.FunctionModel(predict, process, prediction="epsilon", shape=(2,), dtype=torch.float64)


def test_two_steps_of_lms_are_as_worked_by_hand():
    """eps = 1 + 2 rho: Euler's step from 4 to 2.5, then h = -1 after h' = -1.5, x = e1 h (1 + h/2h') - e0 h h/2h'."""
    model = cubic_noise(sds.EDM(0.002, 80.0), [2.0, 1.0])
    start = torch.zeros(1, 2, dtype=torch.float64)
    e0, e1 = 9.0, 6.0
    by_hand = -1.5 * e0 - 1.0 * ((1 + 1 / 3) * e1 - 1 / 3 * e0)
    for name in ("lms", "ipndm-v", "ab"):
        found = sds.sample(model, name, order=2, sigmas=[4.0, 2.5, 1.5], coordinates="ve", start=start, num_samples=1)
        assert found.samples[0, 0].item() == pytest.approx(by_hand, rel=1e-13)
    # a straight line is integrated exactly over the second step: -(1.5 + 2.5^2 - 1.5^2 ...) worked out
    assert by_hand - -1.5 * e0 == pytest.approx(-((2.5 - 1.5) + (2.5**2 - 1.5**2)))


def test_tab_integrates_a_line_in_time_against_sigma():
    """deis tAB on the flow's clock: eps = 1 + 2 t, rho = t / (1 - t), int (1 + 2 t) drho = 3 rho + 2 log(1 - t)."""
    process = sds.RectifiedFlow()

    def predict(x, t, condition=None):
        return torch.full_like(x, 1 + 2 * float(t))

    model = sds.FunctionModel(predict, process, prediction="epsilon", shape=(2,), dtype=torch.float64)
    a, b, c = 0.8, 0.6, 0.25
    rho = [t / (1 - t) for t in (a, b, c)]
    first = (rho[1] - rho[0]) * (1 + 2 * a)
    second = 3 * (rho[2] - rho[1]) + 2 * (math.log(1 - c) - math.log(1 - b))
    start = torch.zeros(1, 2, dtype=torch.float64)
    found = sds.sample(model, "deis", order=2, times=[a, b, c], start=start, num_samples=1)
    assert found.samples[0, 0].item() == pytest.approx((1 - c) * (first + second), rel=1e-12)


def test_plms_and_pndm_are_their_papers_step_by_step():
    """On noise that depends on time alone, on equal timesteps, with the published weights."""
    process = sds.DiscreteVP(TABLE)
    model = sds.FunctionModel(
        lambda x, t, condition=None: torch.full_like(x, math.sin(float(t) / 200)),
        process,
        prediction="epsilon",
        shape=(1,),
        dtype=torch.float64,
    )
    times = [900, 750, 600, 450, 300, 150]
    e = [math.sin(t / 200) for t in range(900, -1, -75)]  # every half step
    rho = [math.sqrt(1 / TABLE[t] - 1) for t in times]
    runge = [(e[k] + 4 * e[k + 1] + e[k + 2]) / 6 for k in (0, 2, 4)]
    fourth = [(55 * e[k] - 59 * e[k - 2] + 37 * e[k - 4] - 9 * e[k - 6]) / 24 for k in (6, 8)]
    warm = [(e[0] + e[2]) / 2, (3 * e[2] - e[0]) / 2, (23 * e[4] - 16 * e[2] + 5 * e[0]) / 12]
    start = torch.zeros(1, 1, dtype=torch.float64)
    for name, noises, evaluations in (("pndm", runge + fourth, 14), ("plms", warm + fourth, 6)):
        result = sds.sample(model, name, times=times, start=start, num_samples=1)
        by_hand = math.sqrt(TABLE[150]) * sum(n * (rho[k + 1] - rho[k]) for k, n in enumerate(noises))
        assert result.samples.item() == pytest.approx(by_hand, rel=1e-10)
        assert result.nfe == evaluations


# --- identities -------------------------------------------------------------------------------------------------------

IDENTITY_PROCESSES = {"vp": sds.VP(), "edm": sds.EDM(), "table": sds.DiscreteVP(TABLE), "flow": sds.RectifiedFlow()}


def sampled(process, name, **words):
    model = sds.grid_mixture(process, prediction="v")
    common = {"steps": 14, "num_samples": 5, "seed": 1, "spacing": "linspace", "coordinates": "native"}
    return sds.sample(model, name, **{**common, **words}).samples


def same(first, second):
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("final", ["zero", "min"])
@pytest.mark.parametrize("process", IDENTITY_PROCESSES.values(), ids=IDENTITY_PROCESSES)
def test_order_one_is_ddim_or_euler(process, final):
    ddim = sampled(process, "ddim", final=final)
    for name in ("lms", "ipndm", "ipndm-v", "deis"):
        same(sampled(process, name, order=1, final=final), ddim)
    for coordinates in ("native", "angle"):
        words = {"coordinates": coordinates, "final": final}
        same(sampled(process, "ab", order=1, **words), sampled(process, "euler", **words))


@pytest.mark.parametrize("coordinates", ["native", "flow", "angle"])
@pytest.mark.parametrize(
    ("name", "options"), [("lms", {}), ("ipndm", {}), ("ipndm-v", {}), ("deis", {"kind": "logrho"})]
)
def test_methods_in_sigma_do_not_depend_on_the_coordinates(name, options, coordinates):
    process = sds.VP()
    same(
        sampled(process, name, coordinates=coordinates, **options), sampled(process, name, coordinates="ve", **options)
    )


@pytest.mark.parametrize("order", mostly_slow([2, 3, 4], keep=[3]))
@pytest.mark.parametrize("process", [sds.VP(), sds.EDM(), sds.DiscreteVP(TABLE)], ids=["vp", "edm", "table"])
def test_adams_in_sigma_has_four_names(process, order):
    """ab in ve = lms = deis rhoab = ipndm-v; the last two end with DDIM's step where sigma ends at 0."""
    lms = sampled(process, "lms", order=order, final="min")
    same(sampled(process, "ab", order=order, coordinates="ve", final="min"), lms)
    same(sampled(process, "ab", order=order, coordinates="ve"), sampled(process, "lms", order=order))
    whole = {"final": "min", "lower_order_final": False}
    same(sampled(process, "deis", order=order, kind="rhoab", **whole), lms)
    same(sampled(process, "deis", order=order, kind="tab", coordinates="ve", **whole), lms)
    same(sampled(process, "ipndm-v", order=order, final="min"), lms)
    same(sampled(process, "ipndm-v", order=order), sampled(process, "deis", order=order, kind="rhoab"))
    assert not torch.equal(sampled(process, "lms", order=order), sampled(process, "ipndm-v", order=order))


def test_abm_of_order_one_is_implicit_euler_by_one_iteration():
    """PECE of order 1: x + h v(x + h v)."""
    model = sds.grid_mixture(sds.VP())
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def predicted(state, t):
        return sds.convert(model.predict(state, t), model.prediction, "flow", state, model.process, t)

    half = x - 0.1 * predicted(x, 0.8)
    by_hand = x - 0.1 * predicted(half, 0.7)
    for mode in ("pec", "pece"):
        # pec predicts only on a path's last step, so the corrected step is one before
        times = [0.8, 0.7, 0.7 - 1e-9] if mode == "pec" else [0.8, 0.7]
        words = {"order": 1, "mode": mode, "coordinates": "native", "start": x, "num_samples": 3}
        found = sds.sample(model, "abm", times=times, **words).samples
        torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-7)


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(NAMES, keep=["ab", "ipndm", "deis"]))
@pytest.mark.parametrize("process", [sds.RectifiedFlow(), sds.DiscreteVP(ZERO_SNR)], ids=["flow", "zero-snr"])
def test_starts_at_pure_noise_converge_to_the_right_place(name, process):
    """From alpha = 0: on data that are one Gaussian the end is mean + deviation times the starting noise."""
    model = sds.GaussianModel([0.7, -0.4], 0.25, process, prediction="v")
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = torch.tensor([0.7, -0.4], dtype=torch.float64) + 0.5 * z
    words = {"start": z, "num_samples": 6, "coordinates": "flow", "spacing": "linspace"}
    found = sds.sample(model, name, steps=100, **words).samples
    assert float((found - exact).abs().max()) < 0.02
    for steps in (1, 2):
        assert torch.isfinite(sds.sample(model, name, steps=steps, **words).samples).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_step_into_sigma_zero_is_eulers(name):
    process = sds.VP()
    reference = "euler" if name in ("ab", "abm") else "ddim"
    same(sampled(process, name, steps=1), sampled(process, reference, steps=1))


@pytest.mark.parametrize(
    ("name", "largest"), [("ab", 5), ("abm", 5), ("lms", 4), ("ipndm", 4), ("ipndm-v", 4), ("deis", 4)]
)
def test_orders_out_of_range_are_refused_in_plain_words(name, largest):
    for order in (0, largest + 1):
        with pytest.raises(ValueError, match=f"order must be from 1 to {largest}, not {order}"):
            sampled(sds.VP(), name, order=order)


@pytest.mark.parametrize("coordinates", ["native", "ve", "angle"])
@pytest.mark.parametrize("spacing", ["angle", "karras", "linspace"])
@pytest.mark.parametrize("name", ["ab", "lms"])
def test_keeping_the_order_into_sigma_zero_is_no_worse_than_an_euler_step(name, spacing, coordinates):
    """The last step alone, against the exact solution from where it begins."""
    problem = Transport(sds.VP())
    start, _ = problem.ends([1.0, 0.0])
    seen = []
    words = {"num_samples": len(start), "coordinates": coordinates}
    kept = sds.sample(
        problem.model, name, steps=20, spacing=spacing, start=start, callback=seen.append, **words
    ).samples
    point, state = seen[-1].point, seen[-1].x / seen[-1].point.scale
    plain = sds.sample(problem.model, "euler", times=[point.t, 0.0], start=state, **words).samples
    exact = problem.at_quantile(problem.quantile(state.flatten().numpy(), point.t), 0.0)
    errors = [float(np.abs(found.flatten().numpy() - exact).mean()) for found in (kept, plain)]
    assert errors[0] < 1.02 * errors[1]


# --- many steps in single precision -----------------------------------------------------------------------------------


class Unit(torch.nn.Module):
    """N(0, 0.25) data on the DDPM table: the exact noise at whole timesteps."""

    def forward(self, x, t):
        a = float(TABLE[int(t)])
        return math.sqrt(1 - a) * x / (0.25 * a + 1 - a)


def exact_end(x, t0, t1):
    a, b = (float(TABLE[t]) for t in (t0, t1))
    return x * math.sqrt((0.25 * b + 1 - b) / (0.25 * a + 1 - a))


@pytest.mark.slow
def test_third_order_deis_stays_accurate_over_500_steps_where_float32_coefficients_do_not():
    """Exact ends for Gaussian data; diffusers' error grows from 1e-3 at 250 steps to 0.07 at 500 and 0.13 at 999."""
    model = sds.GaussianModel([0.0], 0.25, sds.DiscreteVP(TABLE))
    x = torch.linspace(-2, 2, 9)[:, None]
    ours, theirs = {}, {}
    for steps in (250, 500):
        scheduler = diffusers.DEISMultistepScheduler(
            beta_schedule="linear", beta_start=1e-4, beta_end=0.02, solver_order=3, timestep_spacing="linspace"
        )
        scheduler.set_timesteps(steps)
        times = [*scheduler.timesteps.tolist(), 0]
        exact = exact_end(x.double(), times[0], 0)
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(Unit()(state, t), t, state).prev_sample
        theirs[steps] = float((state - exact).abs().max())
        for kind in ("tab", "logrho"):
            words = {"kind": kind, "times": times, "start": x, "num_samples": 9, "dtype": torch.float32}
            ours[kind, steps] = float((sds.sample(model, "deis", **words).samples - exact).abs().max())
    for kind in ("tab", "logrho"):
        assert ours[kind, 500] < min(1e-4, 0.5 * ours[kind, 250])
    assert theirs[500] > 10 * theirs[250]
    assert theirs[500] > 100 * ours["logrho", 500]


@pytest.mark.parametrize("steps", [3, 8, 12])
def test_long_steps_of_ab_2m_are_dpm_solver_pp_2m(steps):
    """In the log clock of VE every step of so few is longer than Adams is stable for."""
    model = sds.grid_mixture(sds.VE(0.01, 348.0))
    words = {"steps": steps, "spacing": "even", "num_samples": 8, "seed": 1}
    found = sds.sample(model, "ab-2m", **words).samples
    expected = sds.sample(model, "dpmpp-2m", solver="midpoint", **words).samples
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (found - sds.sample(model, "ddim", **words).samples).abs().max() > 1e-2


# --- IPNDM of diffusers, on the embedded model ------------------------------------------------------------------------

LIMIT = 1e-4 * 2  # of the data range, which is 2 wide


@pytest.fixture(scope="module")
def network():
    return sds.load("fashion-mnist")


@pytest.mark.parametrize("steps", mostly_slow([10, 25], keep=[10]))
def test_ipndm_equals_diffusers_ipndm(network, steps):
    """Its table is alpha = cos, sigma = sin; any other goes in as `trained_betas`, and its model predicts v."""
    stride = 1000 // steps
    times = list(range((steps - 1) * stride, -1, -stride))
    sigmas = np.sqrt(1 - TABLE[times])
    scheduler = diffusers.IPNDMScheduler(trained_betas=sigmas)
    scheduler.set_timesteps(steps)
    x = noise = NormalSource(11, range(1), (1, 28, 28)).draw(0)
    with torch.no_grad():
        for t, label, sigma in zip(times[:-1], scheduler.timesteps[: steps - 1], sigmas, strict=False):
            eps = network.unet(x, t).sample
            v = (eps - sigma * x) / math.sqrt(1 - sigma**2)
            x = scheduler.step(v, label, x).prev_sample
    found = sds.sample(network, "ipndm", num_samples=1, start=noise, times=times).samples
    assert float((found - x).abs().max()) < 5 * LIMIT  # float32, through its v and back
