"""Time grids: every one falls strictly and has its ends, and their numbers are those of the papers and of diffusers."""

import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import AysSchedules
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from process_cases import BETAS, PROCESSES, TABLE
from scheduler_configurations import DDPM
from scipy import stats
from tiny_models import save_pipeline

import sdesamplers as sds

# Published with the noisiest or the cleanest point left out, or with sigmas of their own.
WITHOUT_START = {"leading", "ays-sd1", "ays-sdxl", "ays-svd"}
WITHOUT_END = {"trailing", "simple", "sgm-uniform", "linear-quadratic", "ays-sd1", "ays-sdxl", "ays-svd"} | {
    "power",
    "flow-power",
}
NEED_FINITE = {"logsnr", "karras", "exponential", "polyexponential", "edm"}
TINY = {"rtol": 1e-12, "atol": 1e-15}


def grid(name, process, count, start=None, **options):
    return sds.spacings()[name](sds.Span(process, start), count, **options)


def ratios(name, process, count, **options):
    """sigma/alpha at the grid's points."""
    return process.ratio(grid(name, process, count, **options))


def edm(sigma_min=0.002, sigma_max=80.0):
    """On this process the time is sigma."""
    return sds.EDM(sigma_min, sigma_max)


# --- what every grid must do ------------------------------------------------------------------------------------------


def cases():
    """Every grid on every process; those of one model's sigmas on a process that has them all."""
    for name in sorted(sds.spacings()):
        for process in ["wide"] if name.startswith("ays") else PROCESSES:
            yield name, process


@pytest.mark.parametrize(("name", "process"), list(cases()))
def test_every_grid_falls_strictly_between_its_ends(name, process):
    process = edm(0.0005, 1000.0) if process == "wide" else PROCESSES[process]
    # A table that ends in pure noise has a largest ratio below its end to begin from.
    if name in NEED_FINITE and np.isinf(process.ratio(process.t_max)) and not isinstance(process, sds.DiscreteVP):
        with pytest.raises(sds.UsageError, match="starts at alpha = 0"):
            grid(name, process, 10)
        return
    for count in (1, 2, 3, 10, 1000):
        times = grid(name, process, count)
        assert times.shape == (count,)
        assert np.all(np.isfinite(times))
        assert np.all(np.diff(times) < 0)
        assert min(process.t_min, 0.0) <= times[-1]
        assert times[0] <= process.t_max
        if name in NEED_FINITE and np.isinf(process.ratio(process.t_max)):
            assert 0.99 * process.t_max < times[0] < process.t_max
        elif name not in WITHOUT_START:
            assert times[0] == process.t_max
        if name not in WITHOUT_END and count > 1:
            assert times[-1] == process.t_min


@pytest.mark.parametrize("name", sorted(set(sds.spacings()) - WITHOUT_START))
def test_grids_begin_where_they_are_told(name):
    for process in (sds.VP(), sds.RectifiedFlow(), sds.DiscreteVP(TABLE)):
        start = 400.0 if isinstance(process, sds.DiscreteVP) else 0.4
        times = grid(name, process, 7, start)
        assert times[0] == start
        assert np.all(np.diff(times) < 0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("karras", {"rho": 0.0}),
        ("polyexponential", {"rho": -1.0}),
        ("karras", {"sigma_min": 1e-4}),
        ("logsnr", {"sigma_min": 1e9}),
        ("kl-optimal", {"data_std": 0.0}),
        ("beta", {"alpha": 0.0}),
        ("laplace", {"b": -1.0}),
        ("linear-quadratic", {"threshold": 1.0}),
        ("linear-quadratic", {"threshold": 0.9}),
        ("linear-quadratic", {"linear_steps": 10}),
        ("flow-shift", {"shift": 0.0}),
        ("flow-shift", {"shift": 2.0, "mu": 1.0}),
        ("flow-shift", {"mu": 1.0, "tokens": 1024}),
        # options that have no meaning with the others, or on this process
        ("flow-shift", {"max_shift": 9.0}),
        ("flow-shift", {"base_shift": 0.5, "mu": 1.0}),
        ("flow-shift", {"law": "linear"}),
        ("flow-shift", {"law": "linear", "shift": 2.0}),
        ("edm", {"column": "ve", "rho": 7.0}),
        ("leading", {"offset": 0}),
    ],
)
def test_options_out_of_range_are_refused_by_the_spacings_name(name, options):
    model = sds.grid_mixture(sds.VP())
    with pytest.raises(sds.UsageError, match=f"spacing '{name}'"):
        sds.sample(model, "ddim", steps=10, spacing=name, spacing_options=options)


@pytest.mark.parametrize("name", sorted(sds.spacings()))
def test_grids_run(name):
    model = sds.grid_mixture(sds.VP() if name != "ays-svd" else sds.EDM(0.002, 700.0))
    result = sds.sample(model, "ddim", steps=8, spacing=name, num_samples=2)
    assert result.recipe.spacing == name
    assert result.nfe == 8


# --- formulas worked by hand ------------------------------------------------------------------------------------------


def test_karras_by_hand():
    """Equation 5 with rho = 2: the roots of 16 and 1 are 4 and 1, and the steps between them are equal."""
    np.testing.assert_allclose(grid("karras", edm(1.0, 16.0), 4, rho=2.0), [16, 9, 4, 1], **TINY)


def test_power_by_hand():
    """Ten times from 1 to a third of a tenth, equally spaced; on EDM this is karras."""
    np.testing.assert_allclose(grid("power", sds.VP(), 10), 1 - (29 / 30) * np.arange(10) / 9, **TINY)
    np.testing.assert_allclose(grid("power", edm(), 9), grid("karras", edm(), 9), **TINY)
    assert grid("power", sds.VP(), 1000)[-1] == 0.001


def test_flow_power_by_hand():
    """On rectified flow tau is the time: with rho = 2 and four points its roots are 1, 3/4, 2/4 and 1/4."""
    found = grid("flow-power", sds.RectifiedFlow(), 4, rho=2.0)
    np.testing.assert_allclose(found, [1, 9 / 16, 4 / 16, 1 / 16], **TINY)
    assert grid("flow-power", sds.RectifiedFlow(), 1000, rho=2.0)[-1] == 0.001


def test_exponential_polyexponential_and_logsnr_by_hand():
    for name in ("exponential", "logsnr", "polyexponential"):
        np.testing.assert_allclose(grid(name, edm(1.0, 1000.0), 4), [1000, 100, 10, 1], **TINY)
    np.testing.assert_allclose(grid("polyexponential", edm(1.0, 10.0**4), 3, rho=2.0), [1e4, 10, 1], **TINY)


def test_a_grid_may_end_at_a_sigma_of_choice():
    """sigma/alpha from 100 to 1, as if the model reached no further; the model's own last point is not in it."""
    whole = edm(0.01, 100.0)
    for name in ("exponential", "logsnr", "polyexponential"):
        np.testing.assert_allclose(grid(name, whole, 3, sigma_min=1.0), [100, 10, 1], **TINY)
    np.testing.assert_allclose(grid("karras", whole, 4, rho=1.0, sigma_min=1.0), [100, 67, 34, 1], **TINY)
    on_vp = ratios("karras", sds.VP(), 9, sigma_min=0.03)
    np.testing.assert_allclose(on_vp[-1], 0.03, rtol=1e-9)


def test_quadratic_by_hand():
    np.testing.assert_allclose(grid("quadratic", edm(1.0, 16.0), 4), [16, 9, 4, 1], **TINY)


@pytest.mark.parametrize("count", [1, 3, 7, 10, 15, 333, 1000])
def test_rounded_strides_by_whole_numbers(count):
    """t_i = 999 - floor(1000 i / n), as ComfyUI indexes its table; trailing rounds where this rounds up."""
    table = PROCESSES["table"]
    simple = grid("simple", table, count)
    assert simple.tolist() == [999 - 1000 * i // count for i in range(count)]
    trailing = grid("trailing", table, count)
    assert np.all(simple >= trailing)
    assert np.array_equal(simple, trailing) == (count in (1, 10, 1000))
    assert np.allclose(grid("sgm-uniform", table, count), [999 * (1 - i / count) for i in range(count)])


def test_without_a_table_the_strides_lead_to_the_clean_end():
    """As flow pipelines of diffusers count them: 1, 1 - 1/N, ..., 1/N, and 0 behind."""
    for name in ("simple", "trailing"):
        np.testing.assert_allclose(grid(name, edm(0.0001, 1.0), 4), [1, 0.75, 0.5, 0.25], **TINY)
    np.testing.assert_allclose(grid("sgm-uniform", edm(0.0001, 1.0), 4), 1 - 0.9999 * np.arange(4) / 4, **TINY)


def test_kl_optimal_by_hand():
    """tan of 75, 45 and 15 degrees; data three times as wide make every sigma three times as large."""
    narrow = edm(2 - math.sqrt(3), 2 + math.sqrt(3))
    np.testing.assert_allclose(grid("kl-optimal", narrow, 3), [2 + math.sqrt(3), 1, 2 - math.sqrt(3)], **TINY)
    wide = edm(3 * narrow.t_min, 3 * narrow.t_max)
    np.testing.assert_allclose(grid("kl-optimal", wide, 5, data_std=3.0), 3 * grid("kl-optimal", narrow, 5), **TINY)


@pytest.mark.parametrize("process", PROCESSES)
def test_kl_optimal_for_data_of_variance_one_is_equal_angles(process):
    process = PROCESSES[process]
    np.testing.assert_array_equal(grid("kl-optimal", process, 9), grid("angle", process, 9))
    angles = np.arctan(process.ratio(grid("angle", process, 9)))
    np.testing.assert_allclose(np.diff(angles), np.diff(angles)[0], rtol=1e-9)


def test_kl_optimal_is_best_for_gaussian_data():
    """Theorem 3.1 for data N(0, c^2): Euler steps in sigma (DDIM) multiply the standard deviation by
    (c^2 + s t) / (c^2 + s^2), which leaves the product of the cosines of the angles' steps as an error; it is nearest
    to 1, and the KL divergence smallest, where they are equal.
    """
    c, count = 0.7, 6
    sigmas = grid("kl-optimal", edm(0.02, 10.0), count, data_std=c)

    def wrong(sigmas):
        factors = (c**2 + sigmas[1:] * sigmas[:-1]) / (c**2 + sigmas[:-1] ** 2)
        return 1 - np.prod(factors) / math.sqrt((c**2 + sigmas[-1] ** 2) / (c**2 + sigmas[0] ** 2))

    step = (math.atan(10 / c) - math.atan(0.02 / c)) / (count - 1)
    assert wrong(sigmas) == pytest.approx(1 - math.cos(step) ** (count - 1), rel=1e-9)
    for k in range(1, count - 1):
        for factor in (0.97, 1.03):
            moved = sigmas.copy()
            moved[k] *= factor
            assert wrong(moved) > wrong(sigmas)


def test_edm_columns_by_their_formulas():
    steps = np.arange(10) / 9
    np.testing.assert_array_equal(grid("edm", edm(), 10), grid("karras", edm(), 10))
    # VE: sigma^2 = sigma_max^2 (sigma_min^2 / sigma_max^2)^(i / (N - 1)), on the paper's range.
    np.testing.assert_allclose(grid("edm", edm(0.02, 100.0), 10, column="ve") ** 2, 1e4 * (4e-8) ** steps, rtol=1e-12)
    # VP: t from 1 to eps_s = 1e-3 in equal steps.
    t = 1 + steps * (1e-3 - 1)
    sigmas = np.sqrt(np.expm1(19.9 * t**2 / 2 + 0.1 * t))
    np.testing.assert_allclose(grid("edm", edm(sigmas[-1], sigmas[0]), 10, column="vp"), sigmas, rtol=1e-11)
    # which is Song et al.'s process with the same betas in equal steps of its time
    song = sds.VP(0.1, 20.0)
    np.testing.assert_allclose(grid("edm", song, 10, column="vp"), grid("linspace", song, 10), rtol=1e-11)


def test_edm_column_of_iddpm_against_the_papers_recurrence():
    """u_M = 0, u_{j-1}^2 = (u_j^2 + 1) / max(abar_{j-1} / abar_j, C_1) - 1; steps take whole indices from j_0 = 8."""
    m, c1, c2, first = 1000, 0.001, 0.008, 8
    abar = np.sin(math.pi / 2 * np.arange(m + 1) / (m * (c2 + 1))) ** 2
    u = np.zeros(m + 1)
    for j in range(m, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(abar[j - 1] / abar[j], c1) - 1)
    assert 79 < u[first] < 82  # the paper's sigma_max = 80
    index = first + (m - 1 - first) * np.arange(18) / 17
    ours = grid("edm", edm(u[m - 1], u[first]), 18, column="iddpm")
    np.testing.assert_allclose(np.interp(-ours, -u, np.arange(m + 1)), index, atol=5e-3)
    rounded = u[np.floor(index + 0.5).astype(int)]
    assert np.all(np.abs(np.interp(-ours, -u, np.arange(m + 1)) - np.interp(-rounded, -u, np.arange(m + 1))) < 0.51)


def test_beta_by_quantiles():
    """The distribution function of beta(0.6, 0.6) at the grid is 1, 9/10, ..., 0; beta(1, 1) is linspace."""
    flow = sds.RectifiedFlow()
    times = (grid("beta", flow, 11) - flow.t_min) / (1 - flow.t_min)
    np.testing.assert_allclose(stats.beta.cdf(times, 0.6, 0.6), 1 - np.arange(11) / 10, atol=1e-9)
    np.testing.assert_allclose(grid("beta", flow, 9, alpha=1.0, beta=1.0), grid("linspace", flow, 9), rtol=1e-9)
    open_end = (grid("beta", flow, 10, last=False) - flow.t_min) / (1 - flow.t_min)
    np.testing.assert_allclose(open_end, times[:10], rtol=1e-9)
    # beta(1/2, 1/2) is the arcsine law, with quantiles sin^2(pi q / 2)
    arcsine = grid("beta", edm(1e-9, 1.0), 7, alpha=0.5, beta=0.5)
    np.testing.assert_allclose(arcsine, np.sin(math.pi / 2 * (1 - np.arange(7) / 6)) ** 2, atol=2e-9)


def test_linear_quadratic_by_hand():
    """8 steps, half of them linear to 0.04: 1 - t = 0.01 i, then 0.01 i + 0.0575 (i - 4)^2, which is 1 at i = 8."""
    done = [0, 0.01, 0.02, 0.03, 0.04, 0.1075, 0.29, 0.5875]
    times = grid("linear-quadratic", sds.RectifiedFlow(), 8, threshold=0.04)
    np.testing.assert_allclose(times, 1 - np.array(done), **TINY)


def test_linear_quadratic_with_mochis_numbers():
    """64 steps and threshold 0.025: 32 equal steps; value, slope and end of the parabola fit."""
    times = grid("linear-quadratic", sds.RectifiedFlow(), 64)
    steps = -np.diff([*times, 0.0])
    np.testing.assert_allclose(steps[:32], 0.025 / 32, rtol=1e-9)
    np.testing.assert_allclose(np.diff(steps[32:]), np.diff(steps[32:])[0], rtol=1e-9)
    bend = np.diff(steps[32:])[0]
    assert steps[32] == pytest.approx(0.025 / 32 + bend / 2)


def test_laplace_by_quantiles():
    """Equal steps of the distribution function of log SNR; on a wide range they are the paper's own quantiles."""
    process = edm(1e-6, 1e6)
    snr = -2 * np.log(grid("laplace", process, 9)[1:-1])
    u = 1 - np.arange(1, 8) / 8
    np.testing.assert_allclose(snr, -0.5 * np.sign(0.5 - u) * np.log(1 - 2 * np.abs(u - 0.5)), atol=1e-6)
    for name in ("vp", "flow", "table"):
        inside = PROCESSES[name]
        snr = -2 * np.log(ratios("laplace", inside, 6, mu=1.0, b=2.0))
        levels = stats.laplace.cdf(snr, 1.0, 2.0)
        np.testing.assert_allclose(np.diff(levels), np.diff(levels)[0], rtol=1e-6)


def test_laplace_far_out_in_a_tail():
    """All of the range on one side of mu, where the density is exponential: 10 steps of e^-20 and of 1 - e^-20."""
    for mu in (-20.0, 20.0):
        times = grid("laplace", edm(0.5, 2.0), 10, mu=mu, b=0.5)
        assert np.all(np.diff(times) < 0)
        levels = np.exp(-np.abs(-2 * np.log(times) - mu) / 0.5)
        np.testing.assert_allclose(np.diff(levels), np.diff(levels)[0], rtol=1e-6)


def test_flow_shift_by_hand():
    """s = 3 of 1, 3/4, 1/2, 1/4, 0+: 1, 9/10, 3/4, 1/2, 0+."""
    flow = sds.RectifiedFlow()
    flow.t_min = 1e-12
    for options in ({}, {"shift": 3.0}, {"mu": math.log(3)}, {"mu": 3.0, "law": "linear"}):
        np.testing.assert_allclose(grid("flow-shift", flow, 5, **options), [1, 0.9, 0.75, 0.5, 1e-12], atol=2e-12)
    np.testing.assert_allclose(grid("flow-shift", flow, 5, shift=1.0), grid("linspace", flow, 5), atol=1e-12)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (2176, 0.825)])
def test_the_shift_that_follows_from_the_resolution(tokens, mu):
    flow = sds.RectifiedFlow()
    np.testing.assert_allclose(grid("flow-shift", flow, 9, tokens=tokens), grid("flow-shift", flow, 9, mu=mu), **TINY)


@pytest.mark.parametrize("name", ["vp", "ve", "table", "cosine"])
def test_a_shift_multiplies_the_ratio_in_every_process(name):
    """u = r / (r + s) runs in equal steps."""
    process = PROCESSES[name]
    r = ratios("flow-shift", process, 8, shift=4.0)
    with np.errstate(divide="ignore"):
        u = 1 / (1 + 4 / r)
    np.testing.assert_allclose(np.diff(u), np.diff(u)[0], rtol=1e-6)


# --- Align Your Steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published", "largest"),
    [
        ("ays-sd1", "StableDiffusionSigmas", 14.615),
        ("ays-sdxl", "StableDiffusionXLSigmas", 14.6146),  # a little below the table's 14.615
        ("ays-svd", "StableDiffusionVideoSigmas", 700.0),
    ],
)
def test_align_your_steps_has_the_published_sigmas_at_ten_steps(name, published, largest):
    """diffusers writes 0 for the last one, where a run ends."""
    np.testing.assert_allclose(grid(name, edm(0.002, largest), 10), AysSchedules[published][:-1], rtol=5e-5)


def test_align_your_steps_at_twenty_steps_goes_through_the_ten_and_their_geometric_means():
    times = grid("ays-sd1", edm(0.002, 14.615), 20)
    table = np.array([*AysSchedules["StableDiffusionSigmas"][:-1], 0.029])
    np.testing.assert_allclose(times[::2], table[:-1], rtol=1e-12)
    np.testing.assert_allclose(times[1::2], np.sqrt(table[:-1] * table[1:]), rtol=1e-12)


def test_align_your_steps_refuses_another_models_range():
    with pytest.raises(ValueError, match=r"14\.615 to 0\.152, which exceeds the range .* from 10 to 0\.002"):
        grid("ays-sd1", edm(0.002, 10.0), 10)
    with pytest.raises(ValueError, match="exceeds the range of sigma"):
        grid("ays-svd", edm(0.05, 700.0), 10)


# --- diffusers' own sigmas --------------------------------------------------------------------------------------------

SINGLE = 2e-5  # relative; diffusers works in float32


@pytest.mark.parametrize("count", [2, 5, 20, 50])
@pytest.mark.parametrize(
    ("flag", "name", "options"),
    [
        ("use_karras_sigmas", "karras", {}),
        ("use_exponential_sigmas", "exponential", {}),
        ("use_beta_sigmas", "beta", {"axis": "sigma"}),
    ],
)
def test_sigma_grids_of_diffusers(flag, name, options, count):
    """At one step diffusers starts at its smallest sigma, so there is nothing to compare."""
    scheduler = diffusers.EulerDiscreteScheduler(**DDPM, **{flag: True})
    scheduler.set_timesteps(count)
    ours = ratios(name, PROCESSES["table"], count, **options)
    np.testing.assert_allclose(ours, scheduler.sigmas.double().numpy()[:-1], rtol=20 * SINGLE)
    aliased, chosen = sds.default_registry().grid(flag)
    assert (aliased.name, chosen) == (name, options)


def test_lu_lambdas_of_diffusers_are_equal_steps_of_lambda():
    scheduler = diffusers.DPMSolverMultistepScheduler(**DDPM, use_lu_lambdas=True)
    scheduler.set_timesteps(20)
    ours = ratios("logsnr", PROCESSES["table"], 20)
    np.testing.assert_allclose(ours, scheduler.sigmas.double().numpy()[:-1], rtol=20 * SINGLE)


@pytest.mark.parametrize("count", [1, 3, 10, 15, 50, 999])
@pytest.mark.parametrize("name", ["leading", "trailing"])
def test_timestep_grids_of_diffusers(name, count):
    scheduler = diffusers.DDIMScheduler(**DDPM, timestep_spacing=name)
    scheduler.set_timesteps(count)
    assert grid(name, PROCESSES["table"], count).tolist() == scheduler.timesteps.tolist()


def flow_of(scheduler):
    """The process that ends where a flow scheduler's grid does."""
    flow = sds.RectifiedFlow()
    flow.t_min = float(scheduler.sigmas[-2])
    return flow


@pytest.mark.parametrize("count", [2, 4, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_static_shift_of_diffusers(shift, count):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(count)
    ours = grid("flow-shift", flow_of(scheduler), count, shift=shift)
    np.testing.assert_allclose(ours, scheduler.sigmas.double().numpy()[:-1], rtol=SINGLE)


@pytest.mark.parametrize("law", ["exponential", "linear"])
@pytest.mark.parametrize("mu", [0.5, 0.9, 1.15])
def test_dynamic_shift_of_diffusers(mu, law):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=law)
    scheduler.set_timesteps(20, mu=mu)
    ours = grid("flow-shift", flow_of(scheduler), 20, mu=mu, law=law)
    np.testing.assert_allclose(ours, scheduler.sigmas.double().numpy()[:-1], rtol=SINGLE)


def test_beta_sigmas_of_a_flow_scheduler():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True)
    scheduler.set_timesteps(20)
    ours = grid("beta", flow_of(scheduler), 20)
    np.testing.assert_allclose(ours, scheduler.sigmas.double().numpy()[:-1], rtol=SINGLE)


# --- zero terminal SNR, a change of the table -------------------------------------------------------------------------


def test_zero_terminal_snr_is_algorithm_1_of_lin_et_al():
    betas = rescale_zero_terminal_snr(torch.from_numpy(BETAS))
    changed = sds.DiscreteVP(TABLE).with_zero_terminal_snr()
    np.testing.assert_allclose(changed.alphas_cumprod, torch.cumprod(1 - betas, 0).numpy(), rtol=1e-9, atol=1e-18)
    assert changed.alphas_cumprod[0] == pytest.approx(TABLE[0], rel=1e-14)
    assert changed.alpha(999.0) == 0.0
    again = changed.with_zero_terminal_snr()
    np.testing.assert_allclose(again.alphas_cumprod, changed.alphas_cumprod, rtol=1e-12)


def test_a_model_is_loaded_with_zero_terminal_snr(tmp_path):
    """As diffusers makes it of the same configuration with rescale_betas_zero_snr."""
    kind = {"prediction_type": "v_prediction"}
    model = sds.load(save_pipeline(tmp_path, DDPMScheduler(**kind)), zero_snr=True)
    expected = DDPMScheduler(rescale_betas_zero_snr=True, **kind).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(model.process.alphas_cumprod, expected, rtol=1e-4, atol=1e-8)
    assert torch.isfinite(sds.sample(model, "ddim", steps=3, spacing="trailing").samples).all()
    with pytest.raises(sds.UsageError, match="predicts v or the sample"):
        sds.load("fashion-mnist", zero_snr=True)
