"""Neal's funnel: its score and the usual slip in it, Langevin's bias and limits, the noised density, its samplers."""

import importlib
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.integrate import quad

import sdesamplers as sds

ROOT = Path(__file__).parents[2]
START, CHAINS = 11, 500


@pytest.fixture(scope="module")
def funnel():
    """The example, imported."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module("neals_funnel")
    finally:
        sys.path.pop(0)


def draws(count, dimension, width, seed=0):
    return sds.FunnelModel(dimension, width).sample_data(count, torch.Generator().manual_seed(seed))


# --- the score, and the slip of leaving the log-variance term out -----------------------------------------------------


class Slip(sds.FunnelModel):
    """Without -(D - 1) v / 2, the log of the x's normalising constant, in the log-density, the score or both."""

    def __init__(self, in_density, in_score, dimension=2, width=1.0, duration=100.0):
        super().__init__(dimension, width, duration)
        self.in_density, self.in_score = in_density, in_score

    def predict(self, x, t, condition=None):
        others = x.shape[1] - 1
        score, density = self.score(x), self.log_prob(x)
        if self.in_score:
            score[:, 0] += others / 2
        if self.in_density:
            density = density + others / 2 * x[:, 0]
        return sds.Output(score, None, density)


@pytest.mark.parametrize(("dimension", "width"), [(2, 3.0), (10, 1.0)])
def test_the_slip_moves_the_gradient_by_half_for_every_x(dimension, width):
    x = draws(6, dimension, width).requires_grad_(True)
    right = sds.FunnelModel(dimension, width)
    (gradient,) = torch.autograd.grad(right.log_prob(x).sum(), x)
    torch.testing.assert_close(right.score(x.detach()), gradient)
    wrong = Slip(True, True, dimension, width).predict(x, 0.0)
    (of_wrong,) = torch.autograd.grad(wrong.log_density.sum(), x)
    torch.testing.assert_close(of_wrong, wrong.value)  # autograd cannot see a term that was never written
    expected = torch.zeros_like(gradient)
    expected[:, 0] = (dimension - 1) / 2
    torch.testing.assert_close(of_wrong - gradient, expected)


@pytest.mark.parametrize("dimension", [2, 10])
def test_the_right_scores_mean_is_zero_and_the_slips_is_not(dimension):
    """E[score] = 0 under its own density; on exact draws, in standard errors."""
    x = draws(4_000, dimension, 3.0)
    score = sds.FunnelModel(dimension, 3.0).score(x)[:, 0]
    error = float(score.std()) / math.sqrt(len(x))
    assert abs(float(score.mean())) < 4 * error
    assert abs(float(score.mean()) + (dimension - 1) / 2) > 4 * error


def chains(model, sampler, step, time, **options):
    """Last states of chains from v = 0."""
    normal = torch.randn(CHAINS, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(START))
    normal[:, 0] = 0
    times = step * np.arange(round(time / step), -1, -1)
    return sds.sample(model, sampler, times=times, start=normal, seed=START, **options).samples


@pytest.mark.slow
def test_the_slip_samples_another_density():
    """Without the term v ~ N((D - 1) s^2 / 2, s^2): MALA is exact for what it was given, and ULA goes there too."""
    error = 1 / math.sqrt(CHAINS)
    for model, sampler in ((Slip(True, True), "mala"), (Slip(False, True), "ula")):
        v = chains(model, sampler, 0.2, 25.0)[:, 0]
        assert abs(float(v.mean()) - 0.5) < 4 * error
        assert float(v.mean()) > 7 * error


@pytest.mark.slow
def test_mala_repairs_a_wrong_score_but_no_wrong_density():
    """The acceptance test knows the density and how proposals were made, so the score only costs acceptance."""
    error = 1 / math.sqrt(CHAINS)
    assert abs(float(chains(Slip(False, True), "mala", 0.2, 25.0)[:, 0].mean())) < 4 * error
    assert abs(float(chains(Slip(True, False), "mala", 0.2, 25.0)[:, 0].mean()) - 0.5) < 4 * error


# --- moments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimension", "width"), [(2, 3.0), (10, 1.0)])
def test_the_exact_moments_and_standard_errors_are_those_of_exact_draws(funnel, dimension, width):
    """400 experiments of 200 draws: deviations have mean 0 and variance 1."""
    found = [list(funnel.deviations(part, width).values()) for part in draws(80_000, dimension, width).split(200)]
    found = np.array(found)
    assert np.abs(found.mean(0)).max() < 4 / math.sqrt(len(found))
    # The largest kurtosis is that of v < -2s, 46, of which a mean of 200 keeps 46/200.
    assert np.abs(found.var(0) - 1).max() < 4 * math.sqrt((2 + 46 / 200) / len(found))


@pytest.mark.slow
def test_malas_moments_are_exact_on_a_mild_funnel(funnel):
    found = chains(sds.FunnelModel(10, 1.0, 100.0), "mala", 0.2, 70.0)
    off = funnel.deviations(found, 1.0)
    assert max(map(abs, off.values())) < 4, off


def test_mala_stays_within_a_support():
    """The exponential distribution, of log-density -inf below 0: mean and variance 1, 4 standard errors."""

    def answer(x, t):
        return sds.Output(-torch.ones_like(x), None, torch.where(x[:, 0] > 0, -x[:, 0], -torch.inf))

    process = sds.LangevinSDE(lambda x: -torch.ones_like(x), 60.0)
    model = sds.FunctionModel(answer, process, "score", (1,), dtype=torch.float64)
    start = torch.ones(CHAINS, 1, dtype=torch.float64)
    found = sds.sample(model, "mala", steps=60, start=start, seed=START).samples[:, 0]
    assert float(found.min()) > 0
    assert abs(float(found.mean()) - 1) < 4 / math.sqrt(CHAINS)
    assert abs(float(found.var()) - 1) < 4 * math.sqrt(8 / CHAINS)


@pytest.mark.slow
def test_ulas_bias_falls_with_its_step(funnel):
    """The neck throws it out, so that v settles too high: seen at 4 standard errors, and falling as the step does."""
    error = 1 / math.sqrt(CHAINS)
    coarse, middle, fine = (
        funnel.statistics(chains(sds.FunnelModel(10, 1.0, 100.0), "ula", h, 20.0), 1.0)["mean v"]
        for h in (0.4, 0.2, 0.05)
    )
    assert coarse - middle > 4 * math.sqrt(2) * error
    assert middle > 4 * error
    assert middle - fine > 2 * math.sqrt(2) * error
    assert abs(fine) < 4 * error


@pytest.mark.slow
def test_langevin_dynamics_misses_the_neck_of_neals_funnel(funnel):
    """300 steps of 0.1, far more work than the diffusion path's 40 evaluations: v's variance and the neck are short."""
    for sampler in ("ula", "mala"):
        found = chains(sds.FunnelModel(2, 3.0, 100.0), sampler, 0.1, 30.0)
        off = funnel.deviations(found, 3.0)
        assert off["mean v²"] < -4
        assert off["v < -6"] < -2
        assert off["v < -3"] < (-4 if sampler == "ula" else 0)


def test_mala_stands_still_in_the_neck(funnel):
    """There x is e^{v/2} wide and a step of h moves it by sqrt(h): the share accepted falls to nothing at h >> e^v."""
    levels = torch.tensor([-9.0, -6.0, 0.0, 3.0], dtype=torch.float64)
    accepted = {h: funnel.acceptance(h, levels, 200, 0) for h in (0.1, 0.001)}
    assert accepted[0.1][0] < 0.05
    assert accepted[0.1][1] < 0.15
    assert accepted[0.1][2:].min() > 0.9
    assert accepted[0.001][1] > 0.9


# --- the noised funnel ------------------------------------------------------------------------------------------------

PROCESSES = [(sds.VP(), 0.3), (sds.VP(), 0.02), (sds.EDM(), 1.5), (sds.EDM(), 20.0), (sds.RectifiedFlow(), 0.6)]


def noised(model, t, count=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    clean = draws(count, model.shape[0], model.width, seed)
    return model.process.perturb(clean, t, torch.randn(clean.shape, dtype=torch.float64, generator=generator))


def log_marginal(row, width, alpha, sigma):
    """log p_t of one state (v, x) by adaptive quadrature over the clean v."""

    def log_joint(v):
        variance = alpha**2 * math.exp(v) + sigma**2
        joint = -0.5 * (v / width) ** 2 - 0.5 * ((row[0] - alpha * v) / sigma) ** 2 - math.log(width * sigma)
        joint -= 0.5 * (np.square(row[1:]).sum() / variance + (len(row) - 1) * math.log(variance))
        return joint - 0.5 * (len(row) + 1) * math.log(2 * math.pi)

    grid = np.linspace(-20, 20, 4001)
    values = [log_joint(v) for v in grid]
    peak, top = grid[int(np.argmax(values))], max(values)
    integral = quad(lambda v: math.exp(log_joint(v) - top), -25, 25, points=[peak], limit=400, epsabs=0)[0]
    return math.log(integral) + top


@pytest.mark.parametrize(("process", "t"), PROCESSES)
@pytest.mark.parametrize("dimension", [2, 10])
def test_the_noised_log_density_is_the_integral_over_the_clean_v(funnel, process, t, dimension):
    model = funnel.NoisedFunnel(dimension, 3.0, process)
    x = noised(model, t, 4)
    for row, found in zip(x.numpy(), model.log_prob(x, t).tolist(), strict=True):
        assert found == pytest.approx(log_marginal(row, 3.0, process.alpha(t), process.sigma(t)), abs=1e-7)


@pytest.mark.parametrize(("process", "t"), PROCESSES)
@pytest.mark.parametrize("dimension", [2, 10])
def test_the_noised_score_is_its_gradient_and_gives_the_posterior_mean(funnel, process, t, dimension):
    model = funnel.NoisedFunnel(dimension, 3.0, process)
    x = noised(model, t).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.log_prob(x, t).sum(), x)
    x = x.detach()
    torch.testing.assert_close(model.score(x, t), gradient, rtol=1e-9, atol=1e-9)
    tweedie = (x + process.sigma(t) ** 2 * gradient) / process.alpha(t)
    torch.testing.assert_close(model.predict(x, t), tweedie, rtol=1e-7, atol=1e-7)
    each = np.full(len(x), t)
    torch.testing.assert_close(model.predict(x, each), model.predict(x, t))


def test_the_noised_density_is_that_of_noised_draws(funnel):
    """Monte Carlo: the mean of N(x; alpha x0, sigma^2) over draws of `FunnelModel`, where draws are many."""
    alpha = sigma = 0.5
    clean = draws(40_000, 2, 3.0, seed=9)
    x = torch.cartesian_prod(torch.linspace(-2, 2, 5), torch.linspace(-1, 1, 3)).double()
    found = funnel.NoisedFunnel(2, 3.0, sds.RectifiedFlow()).log_prob(x, 0.5).exp()
    terms = torch.exp(-0.5 * ((x[:, None] - alpha * clean) / sigma).square().sum(2)) / (2 * math.pi * sigma**2)
    error = terms.std(1) / math.sqrt(len(clean))
    assert (error < 0.05 * found).all()
    assert ((terms.mean(1) - found).abs() < 4 * error).all()


def test_the_noised_funnel_becomes_the_funnel_and_pure_noise(funnel):
    x = draws(20, 5, 1.0)
    model, clean = funnel.NoisedFunnel(5, 1.0, sds.EDM()), sds.FunnelModel(5, 1.0)
    torch.testing.assert_close(model.log_prob(x, 1e-5), clean.log_prob(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(model.score(x, 1e-5), clean.score(x), rtol=1e-3, atol=1e-3)
    flow = funnel.NoisedFunnel(5, 1.0, sds.RectifiedFlow())
    torch.testing.assert_close(flow.log_prob(x, 1.0), flow.process.prior.log_prob(x))
    torch.testing.assert_close(flow.predict(x, 1.0), torch.zeros_like(x), rtol=0, atol=1e-12)


def test_a_funnel_that_is_none_is_refused(funnel):
    with pytest.raises(sds.UsageError, match="dimension >= 2"):
        funnel.NoisedFunnel(1)


@pytest.mark.parametrize("dimension", [2, 10])
def test_the_diffusion_path_has_the_moments_of_neals_funnel(funnel, dimension):
    _, result = funnel.diffusion("dpmpp-2m", 40, funnel.NoisedFunnel(dimension), 2_000, 5)
    off = funnel.deviations(result.samples, 3.0)
    assert result.nfe == 40
    assert max(map(abs, off.values())) < 4, off


@pytest.mark.parametrize("dimension", [2, 10])
def test_the_diffusion_odes_error_falls_at_second_order(funnel, dimension):
    """v from the same starts against many more steps: a quarter for twice the steps."""
    model = funnel.NoisedFunnel(dimension)
    v = {n: funnel.diffusion("heun", n, model, 100, 5)[1].samples[:, 0] for n in (30, 60, 120, 480)}
    error = [float((v[n] - v[480]).square().mean().sqrt()) for n in (30, 60, 120)]
    assert 3 < error[0] / error[1] < 6
    assert 3 < error[1] / error[2] < 6


def test_the_reverse_sdes_error_falls_with_its_steps(funnel):
    """ddpm is of first order, and its v too narrow in few steps; 0.57 is the standard error of v's variance."""
    model = funnel.NoisedFunnel(2)
    short = [
        9 - funnel.statistics(funnel.diffusion("ddpm", n, model, CHAINS, 3)[1].samples, 3.0)["mean v²"]
        for n in (20, 80)
    ]
    error = 9 * math.sqrt(2 / CHAINS)
    assert short[0] > 4 * error
    assert short[0] - short[1] > 3 * math.sqrt(2) * error


# --- the example and the page -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_prints_three_tables_and_draws(funnel, monkeypatch, capsys, tmp_path):
    words = ["--chains", "20", "--steps", "10", "--time", "4", "--dimension", "3", "--out", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", ["neals_funnel.py", *words])
    funnel.main()
    text = capsys.readouterr().out
    assert text.count("standard error of 20") == 3
    rows = re.findall(r"^ +(ula|mala|underdamped-langevin|annealed-langevin|dpmpp-2m|dpmpp-2m-sde|ddpm), ", text, re.M)
    assert len(rows) == 6 + 5 + 8
    assert "nan" not in text
    picture = Image.open(tmp_path / "new" / "neals_funnel.png")
    assert picture.size[0] > 1000
    assert len(np.unique(np.asarray(picture.convert("L")))) > 50


@pytest.mark.parametrize(("words", "message"), [(["--dimension", "1"], "dimension >= 2"), (["--chains", "0"], "1")])
def test_the_example_explains_what_it_cannot_run(funnel, monkeypatch, tmp_path, words, message):
    monkeypatch.setattr(sys, "argv", ["neals_funnel.py", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=message):
        funnel.main()


def test_the_page_runs_as_it_is_written():
    text = (ROOT / "docs" / "langevin.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) > 1
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "langevin.md", "exec"), names)
    assert torch.isfinite(names["samples"]).all()
