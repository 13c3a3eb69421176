"""docs/theory.md: its links name what is there, and its formulas hold on the library's objects."""

import ast
import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from process_cases import BETAS
from scipy.integrate import quad, solve_ivp

import sdesamplers as sds
from sdesamplers.coefficients import semilinear
from sdesamplers.path.path import Path as Grid
from sdesamplers.path.prediction import Prediction
from sdesamplers.processes.predictions import PREDICTIONS, row
from sdesamplers.processes.schedules import TrigFlow

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "theory.md").read_text(encoding="utf-8")

# --- links ------------------------------------------------------------------------------------------------------------

LINKS = re.findall(r"\[(`?)([^]`]+)\1\]\(([^)]+)\)", PAGE)


@functools.cache
def names(file):
    """What a Python file defines: functions, classes and Class.method, and the samplers that it registers."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            calls = [each for each in node.decorator_list if isinstance(each, ast.Call)]
            found |= {call.args[0].value for call in calls if getattr(call.func, "id", "") == "sampler"}
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@pytest.mark.parametrize(("code", "text", "target"), LINKS, ids=[text for _, text, _ in LINKS])
def test_links_name_what_is_there(code, text, target):
    file = (DOCS / target).resolve()
    assert file.is_file()
    if code:
        assert text in names(file)
    else:
        assert text == file.name or text.lower() in file.read_text(encoding="utf-8").splitlines()[0].lower()


def test_tables_are_tables_and_formulas_are_closed():
    tables = [block.splitlines() for block in PAGE.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
    inline = re.sub(r"```.*?```|`[^`]*`", "", PAGE, flags=re.DOTALL)
    assert not [line for line in inline.splitlines() if line.count("$") % 2]
    formulas = re.findall(r"\$([^$]+)\$", inline)
    assert len(formulas) > 100
    for formula in [*formulas, *re.findall(r"```math\n(.*?)```", PAGE, re.DOTALL)]:
        assert formula.count("{") == formula.count("}")
    # Markdown takes the backslash off punctuation before the formula is read.
    assert not [formula for formula in formulas if re.search(r"\\[,;!{}_|]", formula)]


# --- processes --------------------------------------------------------------------------------------------------------

LOW, HIGH, D = 0.1, 20.0, 0.5
PROCESSES = {
    "VP": sds.VP(LOW, HIGH),
    "SubVP": sds.SubVP(LOW, HIGH),
    "VE": sds.VE(0.01, 50.0),
    "CosineVP": sds.CosineVP(),
    "DiscreteVP": sds.DiscreteVP(np.cumprod(1 - BETAS)),
    "EDM": sds.EDM(),
    "RectifiedFlow": sds.RectifiedFlow(),
    "TrigFlow": TrigFlow(D),
}


def beta(t):
    return LOW + (HIGH - LOW) * t


def big_b(t):
    return LOW * t + (HIGH - LOW) * t**2 / 2


def phi(t):
    return math.pi / 2 * (t + 0.008) / 1.008


def table(t):
    """alphas_cumprod at a whole timestep."""
    return math.prod(1 - BETAS[: int(t) + 1])


SLOPE = math.pi / 2 / 1.008
# The page's cells in Python; a cell that is changed there has to be changed here.
CELLS = {
    r"e^{-B/2}": lambda t: math.exp(-big_b(t) / 2),
    r"\sqrt{1 - e^{-B}}": lambda t: math.sqrt(1 - math.exp(-big_b(t))),
    r"1 - e^{-B}": lambda t: 1 - math.exp(-big_b(t)),
    r"-\beta/2": lambda t: -beta(t) / 2,
    r"\beta": beta,
    r"\beta (1 - e^{-2B})": lambda t: beta(t) * (1 - math.exp(-2 * big_b(t))),
    r"0": lambda t: 0.0,
    r"1": lambda t: 1.0,
    r"\sigma_{\min} q^t": lambda t: 0.01 * 5000**t,
    r"2 \sigma^2 \log q": lambda t: 2 * (0.01 * 5000**t) ** 2 * math.log(5000),
    r"\cos\varphi / \cos\varphi_0": lambda t: math.cos(phi(t)) / math.cos(phi(0)),
    r"\sqrt{1 - \alpha^2}": lambda t: math.sqrt(1 - (math.cos(phi(t)) / math.cos(phi(0))) ** 2),
    r"-\varphi' \tan\varphi": lambda t: -SLOPE * math.tan(phi(t)),
    r"2 \varphi' \tan\varphi": lambda t: 2 * SLOPE * math.tan(phi(t)),
    r"\sqrt{\bar\alpha}": lambda t: math.sqrt(table(t)),
    r"\sqrt{1 - \bar\alpha}": lambda t: math.sqrt(1 - table(t)),
    r"\sigma^2 \lambda'": lambda t: (1 - table(t)) * half_log_snr_slope(t),
    r"-2 \sigma^2 \lambda'": lambda t: -2 * (1 - table(t)) * half_log_snr_slope(t),
    r"t": lambda t: t,
    r"2t": lambda t: 2 * t,
    r"1 - t": lambda t: 1 - t,
    r"-1/(1-t)": lambda t: -1 / (1 - t),
    r"2t/(1-t)": lambda t: 2 * t / (1 - t),
    r"\cos t": math.cos,
    r"d \sin t": lambda t: D * math.sin(t),
    r"-\tan t": lambda t: -math.tan(t),
    r"2 d^2 \tan t": lambda t: 2 * D**2 * math.tan(t),
}
ROWS = {
    cells[0].split("`")[1]: [cell.strip("$") for cell in cells[1:5]]
    for cells in (
        [part.strip() for part in line.split("|")[1:-1]]
        for line in PAGE.splitlines()
        if "/processes/" in line and line.startswith("| [")
    )
    if len(cells) == 6
}


def slope(function, t, h):
    """Derivative by the five-point rule, error h^4."""
    inner = 8 * (function(t + h) - function(t - h)) - (function(t + 2 * h) - function(t - 2 * h))
    return float(inner) / (12 * h)


def half_log_snr_slope(t):
    """lambda' of the table's process; between its timesteps the spline is the library's own."""
    return slope(lambda u: PROCESSES["DiscreteVP"].log_snr(u) / 2, t, 1e-3)


def times(name):
    process = PROCESSES[name]
    if name == "DiscreteVP":
        return [17.0, 300.0, 512.0, 940.0]
    return [process.t_min + share * (process.t_max - process.t_min) for share in (0.07, 0.31, 0.62, 0.93)]


def test_the_pages_table_has_all_processes():
    assert {*ROWS} == {*PROCESSES}


@pytest.mark.parametrize("name", PROCESSES)
def test_the_pages_table_is_what_the_processes_are(name):
    process = PROCESSES[name]
    alpha, sigma, f, g2 = (CELLS[cell] for cell in ROWS[name])
    one = torch.ones(1, 1, dtype=torch.float64)
    for t in times(name):
        assert float(process.alpha(t)) == pytest.approx(alpha(t), rel=1e-10)
        assert float(process.sigma(t)) == pytest.approx(sigma(t), rel=1e-9)
        assert float(process.drift(one, t)) == pytest.approx(f(t), rel=1e-9, abs=1e-12)
        assert float(process.diffusion(t)) ** 2 == pytest.approx(g2(t), rel=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_f_and_g_are_the_derivatives_that_the_page_says(name):
    """f = (log alpha)', g^2 = (sigma^2)' - 2 f sigma^2 = -2 sigma^2 lambda', by finite differences."""
    process = PROCESSES[name]
    h = 1e-3 if name == "DiscreteVP" else 1e-4 * process.t_max
    one = torch.ones(1, 1, dtype=torch.float64)
    for t in times(name):
        f = slope(lambda u: np.log(process.alpha(u)), t, h)
        sigma2 = float(process.sigma(t)) ** 2
        g2 = slope(lambda u: np.square(process.sigma(u)), t, h) - 2 * f * sigma2
        assert float(process.drift(one, t)) == pytest.approx(f, rel=1e-6, abs=1e-9)
        assert float(process.diffusion(t)) ** 2 == pytest.approx(g2, rel=1e-6)
        assert g2 == pytest.approx(-sigma2 * slope(process.log_snr, t, h), rel=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_forward_steps_compose_and_ddpm_is_their_posterior(name):
    """q(x_s | x_t, x_0) by conditioning the joint normal of (x_s, x_t), and one step of `ddpm` with x_0 known."""
    process = PROCESSES[name]
    s, t = times(name)[1:3]
    (a_s, s_s), (a_t, s_t) = ((float(process.alpha(u)), float(process.sigma(u))) for u in (s, t))
    a = a_t / a_s
    b2 = s_t**2 - a**2 * s_s**2
    joint = np.array([[s_s**2, a * s_s**2], [a * s_s**2, a**2 * s_s**2 + b2]])  # given x_0
    assert joint[1, 1] == pytest.approx(s_t**2)
    x0, x = 0.7, 0.4
    mean = a_s * x0 + joint[0, 1] / joint[1, 1] * (x - a_t * x0)
    std = math.sqrt(joint[0, 0] - joint[0, 1] ** 2 / joint[1, 1])
    kappa = 1 - math.exp(float(process.log_snr(t) - process.log_snr(s)))
    assert mean == pytest.approx(a_t * s_s**2 / (a_s * s_t**2) * x + a_s * kappa * x0)
    assert std == pytest.approx(s_s * math.sqrt(kappa))
    known = sds.FunctionModel(lambda x, t: torch.full_like(x, x0), process, "sample", (1,), dtype=torch.float64)
    start = torch.full((1, 1), x, dtype=torch.float64)
    run = sds.sample(known, "ddpm", times=[t, s], start=start, log_probs=True)
    z = (float(run.samples) - mean) / std
    assert float(run.log_probs) == pytest.approx(-(z**2) / 2 - math.log(2 * math.pi * std**2) / 2, rel=1e-8)


# --- predictions ------------------------------------------------------------------------------------------------------


def test_the_pages_rows_are_the_predictions():
    cells = {
        "0": lambda *_: 0.0,
        "1": lambda *_: 1.0,
        r"-\sigma": lambda a, s, da, ds: -s,
        r"\alpha": lambda a, s, da, ds: a,
        r"-1/\sigma": lambda a, s, da, ds: -1 / s,
        r"\alpha'": lambda a, s, da, ds: da,
        r"\sigma'": lambda a, s, da, ds: ds,
    }
    found = {kind: (p, q) for kind, p, q in re.findall(r"^\| `(\w+)` \| \$(.*?)\$ \| \$(.*?)\$ \|", PAGE, re.M)}
    assert {*found} == {*PREDICTIONS}
    schedule = (0.8, 0.5, -0.3, 1.7)
    for kind, (p, q) in found.items():
        assert row(kind, schedule) == pytest.approx((cells[p](*schedule), cells[q](*schedule)))


FROM_SIGNAL = [name for name in PROCESSES if name not in ("CosineVP", "RectifiedFlow", "TrigFlow")]
"""Those that start at alpha > 0, and so can be seen in `ve` coordinates."""
VIEWS = [(name, view) for name in PROCESSES for view in ("native", "flow", "angle")]


@pytest.mark.parametrize(("name", "coordinates"), [*VIEWS, *((name, "ve") for name in FROM_SIGNAL)])
def test_velocity_x0_and_coordinates(name, coordinates):
    """v = f x - g^2 S / 2 = alpha' x0 + sigma' eps, f and g^2 by finite differences; Tweedie's x0; a view's own v."""
    process = sds.view(PROCESSES[name], coordinates)
    x, eps = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for native in times(name)[:3]:
        t = float(process.clock(native, PROCESSES[name].ratio(native)))
        h = 1e-3 if (name, coordinates) == ("DiscreteVP", "native") else 1e-4 * t
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        f = slope(lambda u: np.log(process.alpha(u)), t, h)
        g2 = slope(lambda u: np.square(process.sigma(u)), t, h) - 2 * f * sigma**2
        out = Prediction(x, Grid(process, []).at(t), eps, "epsilon")
        torch.testing.assert_close(out.score, -eps / sigma, rtol=1e-10, atol=0)
        torch.testing.assert_close(out.x0, (x + sigma**2 * out.score) / alpha, rtol=1e-9, atol=1e-9)
        expected = f * x - g2 / 2 * out.score
        close = {"rtol": 1e-6, "atol": 1e-6 * float(expected.abs().max())}
        torch.testing.assert_close(out.velocity, expected, **close)
        own = {"ve": eps, "flow": eps - out.x0, "angle": alpha * eps - sigma * out.x0}
        torch.testing.assert_close(out.velocity, own.get(coordinates, expected), **close)


# --- reverse processes ------------------------------------------------------------------------------------------------


def fokker_planck(model, x, t, amount, drift):
    """(N,) d log p/dt + div b + b S + (amount g)^2/2 (div S + S^2) for a drift b(x): 0 where p_t solves the equation of
    dx = b dt + amount g dw run backwards in time; divided by the size of its largest term."""
    process = model.process
    x = x.clone().requires_grad_()

    def divergence(field):
        return sum(torch.autograd.grad(field[:, k].sum(), x, retain_graph=True)[0][:, k] for k in range(x.shape[1]))

    h = 1e-3 if t > 10 else 1e-4 * process.t_max
    change = (8 * (model.log_prob(x, t + h) - model.log_prob(x, t - h))) / (12 * h)
    change = change - (model.log_prob(x, t + 2 * h) - model.log_prob(x, t - 2 * h)) / (12 * h)
    score = model.score(x, t)
    b = drift(x, score)
    spread = (amount * float(process.diffusion(t))) ** 2 / 2
    terms = [change, divergence(b), (b * score).sum(1), spread * divergence(score), spread * score.square().sum(1)]
    return (sum(terms) / torch.stack(terms).abs().amax()).detach()


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("make", [lambda p: sds.GaussianModel([0.3, -0.8], [0.3, 1.4], p), sds.grid_mixture])
def test_the_family_keeps_the_marginals(make, name):
    """Fokker-Planck's residual is 0 for every eta (0 is the ODE, whose equation is the change of log p of likelihoods),
    and is not for a drift with eta in place of eta^2."""
    process = PROCESSES[name]
    model = make(process)
    for t in times(name)[:3]:
        x = model.sample_data(5, torch.Generator().manual_seed(3), t)
        for eta in (0.0, 0.4, 1.0, 1.7):
            residual = fokker_planck(model, x, t, eta, lambda x, s, t=t, eta=eta: process.reverse_drift(x, t, s, eta))
            assert float(residual.abs().max()) < 1e-6
            slip = fokker_planck(model, x, t, eta, lambda x, s, t=t, eta=eta: process.reverse_drift(x, t, s, eta**0.5))
            assert (float(slip.abs().max()) > 1e-3) == (eta not in (0.0, 1.0))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_forward_equation(name):
    """dp/dt = -div(f x p) + g^2/2 lap p: the same residual with -g^2 for the noise of time run backwards."""
    process = PROCESSES[name]
    model = sds.grid_mixture(process)
    for t in times(name)[:3]:
        x = model.sample_data(5, torch.Generator().manual_seed(3), t)
        forward = fokker_planck(
            model, x, t, 0.0, lambda x, s, t=t: process.drift(x, t) - float(process.diffusion(t)) ** 2 / 2 * s
        )
        assert float(forward.abs().max()) < 1e-6


# --- discretisations --------------------------------------------------------------------------------------------------


def constant(process, value=0.8):
    """A network that says the same epsilon everywhere."""
    return sds.FunctionModel(lambda x, t: torch.full_like(x, value), process, "epsilon", (1,), dtype=torch.float64)


def linear_parts(process, t):
    one = torch.ones(1, 1, dtype=torch.float64)
    return float(process.drift(one, t)), float(process.diffusion(t)) ** 2, float(process.sigma(t))


@pytest.mark.parametrize("name", PROCESSES)
def test_ddim_solves_the_ode_exactly_while_epsilon_stays(name):
    process = PROCESSES[name]
    s, t = times(name)[1:3]

    def ode(u, x):
        f, g2, sigma = linear_parts(process, u)
        return f * x + g2 / (2 * sigma) * 0.8

    exact = solve_ivp(ode, (t, s), [1.2], method="DOP853", rtol=1e-11, atol=1e-13).y[0, -1]
    start = torch.full((1, 1), 1.2, dtype=torch.float64)
    found = sds.sample(constant(process), "ddim", times=[t, s], start=start).samples
    assert float(found) == pytest.approx(exact, rel=1e-8)
    (a_s, s_s), (a_t, s_t) = ((float(process.alpha(u)), float(process.sigma(u))) for u in (s, t))
    assert float(found) == pytest.approx(a_s / a_t * 1.2 + a_s * (s_s / a_s - s_t / a_t) * 0.8, rel=1e-12)


@pytest.mark.parametrize("name", FROM_SIGNAL)
def test_ddim_is_euler_in_ve_coordinates(name):
    """One step to rounding, on a real score."""
    model = sds.grid_mixture(PROCESSES[name])
    s, t = times(name)[1:3]
    start = model.sample_data(4, torch.Generator().manual_seed(0), t)
    words = {"times": [t, s], "start": start, "num_samples": 4}
    ddim, euler = (
        sds.sample(model, n, coordinates=c, **words).samples for n, c in (("ddim", "native"), ("euler", "ve"))
    )
    torch.testing.assert_close(euler, ddim, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["VP", "SubVP", "CosineVP", "DiscreteVP"])
def test_ddim_is_not_euler_in_native_time(name):
    """Their difference over one step of h is c h^2: a fourth at h/2, and not 0."""
    process = PROCESSES[name]
    t = times(name)[1]
    model = sds.grid_mixture(process)
    start = model.sample_data(4, torch.Generator().manual_seed(0), t)
    gaps = []
    for h in (0.004 * process.t_max, 0.002 * process.t_max):
        words = {"times": [t, t - h], "start": start, "num_samples": 4, "coordinates": "native"}
        ddim, euler = (sds.sample(model, sampler, **words).samples for sampler in ("ddim", "euler"))
        gaps.append(float((ddim - euler).abs().max()))
    assert gaps[1] > 1e-6
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("kind", ["noise", "data"])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_exact_solution_of_dpm_solver(name, kind):
    """The integral over lambda of a prediction that moves, sin(lambda), against the ODE solved in time."""
    process = PROCESSES[name]
    s, t = times(name)[1:3]

    def ode(u, x):
        f, g2, sigma = linear_parts(process, u)
        said = math.sin(float(process.log_snr(u)) / 2)
        eps = said if kind == "noise" else (x - float(process.alpha(u)) * said) / sigma
        return f * x + g2 / (2 * sigma) * eps

    exact = solve_ivp(ode, (t, s), [1.2], method="DOP853", rtol=1e-11, atol=1e-13).y[0, -1]
    grid = Grid(sds.view(process), [])
    now, then = grid.at(float(t)), grid.at(float(s))
    carry, gain, rate = semilinear(now, then, kind)
    integral = quad(lambda u: math.exp(rate * (u - then.lam)) * math.sin(u), now.lam, then.lam, epsabs=1e-13)[0]
    assert carry * 1.2 + gain * integral == pytest.approx(exact, rel=1e-7)
    (a_s, s_s), (a_t, s_t) = ((float(process.alpha(u)), float(process.sigma(u))) for u in (s, t))
    page = (a_s / a_t, -s_s, -1.0) if kind == "noise" else (s_s / s_t, a_s, 1.0)
    assert (carry, gain, rate) == pytest.approx(page, rel=1e-9)
