"""The conformance kit: every registered sampler passes it, and deliberately broken ones fail where they should."""

import ast
import inspect
import json
import math
import random
import textwrap

import numpy as np
import pytest
import torch
from lanes import mostly_slow

import sdesamplers as sds
from sdesamplers.coefficients import lagrange_integrals
from sdesamplers.testing import CHECKS, ConformanceError, check_sampler
from sdesamplers.testing.problems import PROCESSES, Transport, gaussian_moments, graded, run

# --- the kit's own yardsticks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_quantile_transport_solves_the_probability_flow_ode(name):
    """Against scipy's DOP853 on the ODE written out by hand from the mixture's score."""
    from scipy.integrate import solve_ivp

    problem = Transport(PROCESSES[name])
    process, times = problem.process, problem.time(np.array([-1.5, 1.5]))
    start, exact = problem.ends(times, count=9)

    def slope(t, x):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        rate = float(process.d_alpha(t)) / alpha
        g2 = 2 * sigma * (float(process.d_sigma(t)) - rate * sigma)
        score = problem.model.score(torch.from_numpy(x)[:, None], t)[:, 0].numpy()
        return rate * x - 0.5 * g2 * score

    found = solve_ivp(slope, times, start[:, 0].numpy(), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    np.testing.assert_allclose(exact[:, 0].numpy(), found, rtol=0, atol=1e-10)


def test_exact_moments_are_those_of_many_samples():
    """10,000 samples of ddpm: mean within 4 sqrt(v/n), variance within 4 v sqrt(2/n)."""
    problem, count = Transport(sds.VP()), 10_000
    times = problem.time(graded(-1.5, 1.5, 6, 1))
    spec = sds.samplers()["ddpm"]
    found = gaussian_moments(spec, problem.process, times)
    assert found.affinity < 1e-12
    model = sds.GaussianModel([0.7], 0.36, problem.process)
    start = model.sample_data(count, torch.Generator().manual_seed(1), float(times[0]))
    samples = sds.sample(model, "ddpm", times=times, start=start, num_samples=count, seed=2).samples
    assert abs(float(samples.mean()) - found.mean) < 4 * math.sqrt(found.variance / count)
    assert abs(float(samples.var()) - found.variance) < 4 * found.variance * math.sqrt(2 / count)


def test_run_is_sample():
    problem = Transport(sds.VP())
    times = problem.time(graded(-1.5, 1.5, 6, 2))
    start, _ = problem.ends(times)
    ours = run(problem.model, sds.samplers()["heun"], start, times=times, coordinates="ve")
    words = {"times": times, "start": start, "num_samples": len(start), "coordinates": "ve"}
    assert torch.equal(ours, sds.sample(problem.model, "heun", **words).samples)


# --- every registered sampler -----------------------------------------------------------------------------------------


ONE_OF_EACH = {
    "euler": "one step, in the model's own coordinates",
    "ddim": "one step, the same in all coordinates",
    "heun": "two stages",
    "dpmpp-2m": "multistep",
    "rk45": "adaptive",
    "ddpm": "stochastic",
    "lcm": "of consistency models",
    "bdia-ddim": "invertible",
    "dpmpp-2m-cfgpp": "with the unguided prediction",
    "mala": "on a density",
}
"""Samplers that are checked by default, with what they represent."""

SECONDS = ("ODE order", "weak order", "strong order", "distribution", "float32", "finite", "free steps")
"""Checks that take seconds. The whole kit runs by default on a sampler on a density, to which few of them apply."""


@pytest.mark.parametrize("name", mostly_slow(sorted(sds.samplers()), keep=["mala"]))
def test_registered_sampler_conforms(name):
    check_sampler(name).require()


@pytest.mark.parametrize("name", mostly_slow(ONE_OF_EACH, keep=lambda name: name != "rk45"))
def test_one_sampler_of_each_kind_passes_the_quick_checks(name):
    check_sampler(name, checks=[check for check in CHECKS if check not in SECONDS]).require()


@pytest.mark.parametrize(
    ("name", "check"),
    [
        *(("ddim", check) for check in ("ODE order", "distribution", "float32", "finite")),
        *(("rk45", check) for check in ("evaluations", "push = pull", "tolerance")),
    ],
)
def test_a_sampler_passes_a_check(name, check):
    (finding,) = check_sampler(name, checks=[check]).require()
    assert finding.verdict == "pass"


# --- planted faults ---------------------------------------------------------------------------------------------------
# Each is a plausible slip in a sampler that would otherwise pass; the kit must catch it by the check that is meant to.


def broken(check, order=1, **declared):
    """Mark a faulty sampler with the check that must catch it."""

    def mark(function):
        function.__doc__ = function.__doc__ or "A sampler with a fault."
        declared.setdefault("needs", ("marginals",))
        name = function.__name__.replace("_", "-")
        return check, sds.sampler(name, order=order, reference="none", **declared)(function)

    return mark


@broken("ODE order")
def wrong_sigma(x, path):
    for now, then in path.steps:
        out = yield x, now
        x = out.compose(x0=then.alpha, eps=then.sigma * (1 + 0.3 * (now.lam - then.lam)) if not then.is_clean else 0.0)
    return x


@broken("ODE order", order=2)
def mixed_up_sigmas(x, path):
    last = None
    for now, then in path.steps:
        out = yield x, now
        if last is None or now.is_pure_noise or then.is_clean:
            x = out.step_to(then)
        else:
            nodes = [now.lam, last[0]]
            first, second = lagrange_integrals(nodes, now.lam, then.lam, rate=1.0)
            # the signal level that the step begins at, in place of the one it ends at
            x = then.sigma / now.sigma * out.x + now.alpha * (first * out.x0 + second * last[1])
        last = None if now.is_pure_noise else (now.lam, out.x0)
    return x


@broken("ODE order", order=2)
def stale_history(x, path):
    last = None
    for now, then in path.steps:
        out = yield x, now
        h = then.time - now.time
        slope = out.velocity
        if last is None:
            x, last = out.x + h * slope, (now.time, slope)
        else:
            first, second = lagrange_integrals([now.time, last[0]], now.time, then.time)
            x = out.x + first * slope + second * last[1]  # and `last` is never brought up to date
    return x


@broken("ODE order", order=2, evaluations=2, needs=())
def missing_half(x, path):
    for now, then in path.steps:
        h = then.time - now.time
        out = yield x, now
        x, slope = out.x, out.velocity
        if not then.is_clean:
            ahead = yield x + h * slope, then
            slope = 0.25 * slope + 0.75 * ahead.velocity
        x = x + h * slope
    return x


@broken("ODE order", order=3)
def single_precision_coefficients(x, path):
    history = []
    for now, then in path.steps:
        out = yield x, now
        if now.is_pure_noise or then.is_clean:
            x = out.step_to(then)
            continue
        history = [(now.lam, out.x0), *history][:3]
        weights = lagrange_integrals([lam for lam, _ in history], now.lam, then.lam, rate=1.0)
        weights = np.float32(weights) * np.float32(then.alpha)
        x = float(np.float32(then.sigma / now.sigma)) * out.x
        for weight, (_, x0) in zip(weights, history, strict=True):
            x = x + float(weight) * x0
    return x


@broken("ODE order", order=2, needs=())
def rounded_times(x, path):
    for now, then in path.steps:
        h = then.time - now.time
        out = yield x, now
        x, slope = out.x, out.velocity
        middle = path.at(round(now.time + h / 2, 3))
        ahead = yield x + h / 2 * slope, middle
        x = x + h * ahead.velocity
    return x


@broken("reproducible", stochastic=True)
def global_random_numbers(x, path):
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then)
        x = path.draw(x, 0.0 if then.is_clean else 1e-3, now, then)
        x = x + 1e-3 * torch.randn_like(x) * then.sigma
    return x


LEAK = []


@broken("reproducible")
def history_of_another_run(x, path):
    for now, then in path.steps:
        out = yield x, now
        LEAK.append(out.x0[0].mean())
        x = out.step_to(then) + 1e-3 * LEAK[max(len(LEAK) - 20, 0)]
    return x


@broken("point mass", needs=())
def lost_last_step(x, path):
    for now, then in path.steps[:-1]:
        out = yield x, now
        x = torch.add(out.x, out.velocity, alpha=then.time - now.time)
    return x


@broken("batch independence")
def batch_coupling(x, path):
    for now, then in path.steps:
        out = yield x, now
        x0 = out.x0 / out.x0.abs().max().clamp(min=2.0) * 2.0  # thresholding by the batch's largest value
        x = then.alpha * x0 + then.sigma * out.eps
    return x


@broken("options")
def ignored_option(x, path, *, strength: float = 1.0):
    """strength does nothing."""
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then)
    return x


@broken("edits", needs=())
def edit_ignored(x, path):
    for now, then in path.steps:
        slope = (yield x, now).velocity
        x = x + (then.time - now.time) * slope
    return x


@broken("evaluations", order=2, needs=())
def one_evaluation_claimed(x, path):
    for now, then in path.steps:
        h = then.time - now.time
        out = yield x, now
        x = out.x
        ahead = yield x + h / 2 * out.velocity, path.at(now.time + h / 2)
        x = x + h * ahead.velocity
    return x


@broken("shape and dtype")
def single_precision_state(x, path):
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then).float()
    return x


@broken("noise", stochastic=True)
def noise_claimed(x, path):
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then)
    return x


@broken("weak order", stochastic=True)
def too_little_noise(x, path):
    for now, then in path.steps:
        out = yield x, now
        down, std = path.ancestral(now, then, 1.0)
        x = path.draw((then.alpha / down.alpha) * out.step_to(down), 0.9 * std, now, then)
    return x


@broken("finite")
def nan_at_sigma_zero(x, path):
    for now, then in path.steps:
        out = yield x, now
        h = np.log(now.sigma / then.sigma) if then.sigma else np.inf  # infinite into sigma = 0, and 0 * inf is NaN
        x = out.step_to(then) + 0.0 * h * out.x
    return x


@broken("prediction types")
def reads_the_raw_output(x, path):
    for now, then in path.steps:
        out = yield x, now
        x0 = (out.x - now.sigma * out.raw) / now.alpha
        x = then.alpha * x0 + then.sigma * out.raw
    return x


@broken("states left alone", needs=())
def works_in_place(x, path):
    for now, then in path.steps:
        out = yield x, now
        slope = out.velocity
        x.add_(slope, alpha=then.time - now.time)
    return x


@broken("log-probabilities", stochastic=True)
def noise_behind_the_path(x, path):
    for now, then in path.steps:
        out = yield x, now
        down, std = path.ancestral(now, then, 1.0)
        mean = (then.alpha / down.alpha) * out.step_to(down)
        x = (
            mean
            if std == 0
            else mean + (path.draw(torch.zeros_like(mean), 1.0, now, then) + 0.1 * hash_noise(mean)) * std
        )
    return x


def hash_noise(x):
    """Noise that the path knows nothing of."""
    hash_noise.count += 1
    return torch.full_like(x, math.sin(hash_noise.count))


hash_noise.count = 0


@broken("plain SDE", needs=())
def marginals_not_declared(x, path):
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then)
    return x


@broken("declaration")
def option_not_explained(x, path, *, mystery: float = 0.0):
    """A sampler that says nothing of what it takes."""
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then) * (1 + mystery)
    return x


@broken("strong order", stochastic=True, strong_order=2.0, needs=())
def strong_order_claimed(x, path):
    for now, then in path.steps:
        h = then.time - now.time
        amount = 0.0 if now.is_pure_noise or then.is_clean else 1.0
        out = yield x, now
        mean = torch.add(out.x, out.reverse_drift(amount), alpha=h)
        x = path.draw(mean, amount and now.diffusion * math.sqrt(abs(h)), now, then)
    return x


@broken("distribution", order=None)
def contrast_lost(x, path):
    for now, then in path.steps:
        out = yield x, now
        x = out.compose(x0=0.95 * then.alpha, eps=then.sigma)
    return x


@broken("float32")
def digits_lost(x, path):
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then) + 3e3 - 3e3
    return x


@broken("tolerance", control=("rtol", "atol"))
def tolerance_ignored(x, path, *, rtol: float = 1e-3, atol: float = 1e-3):
    """rtol and atol steer nothing."""
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then)
    return x


@broken("free steps", control=("rtol", "atol"))
def steps_of_the_batch(x, path, *, rtol: float = 1e-3, atol: float = 1e-3):
    """rtol and atol steer the steps by the batch's largest number, as torchdiffeq's do."""
    start, *rest = path.points
    now, (target, *clean) = start, rest
    while now.time != target.time:
        out = yield x, now
        share = rtol / (atol + float(out.x0.abs().max()) * 1e-2)
        then = target if share > 0.5 else path.at(now.time + (target.time - now.time) * max(share, 0.1))
        if abs(target.time - then.time) < 1e-3 * abs(target.time - start.time):
            then = target
        x, now = out.step_to(then), then
    for then in clean:
        out = yield x, now
        x = out.step_to(then)
    return x


@broken("push = pull")
def stack_inspected(x, path):
    pulled = any(frame.function == "drive" for frame in inspect.stack())
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then) if pulled else out.step_to(then) * 1.001
    return x


@broken("finite")
def crashes_on_flow_models(x, path):
    for now, then in path.steps:
        lam = math.log(now.alpha / now.sigma)
        out = yield x, now
        x = out.step_to(then) + 0 * lam
    return x


@broken("weak order", order=2, stochastic=True)
def not_affine(x, path):
    for now, then in path.steps:
        out = yield x, now
        down, std = path.ancestral(now, then, 1.0)
        mean = (then.alpha / down.alpha) * out.step_to(down)
        x = path.draw(mean + 1e-4 * mean**2, std, now, then)
    return x


@broken("ODE order", order=7)
def refuses_two_steps(x, path):
    if len(path.steps) < 3:
        raise ValueError("it takes 3 steps or more")
    for now, then in path.steps:
        out = yield x, now
        x = out.compose(x0=then.alpha, eps=0.5 * (now.sigma + then.sigma) if not then.is_clean else 0.0)
    return x


SLOPES = {}


@broken("resumed")
def slope_outside_of_the_generator(x, path):
    SLOPES["last"] = torch.zeros_like(x)
    for now, then in path.steps:
        out = yield x, now
        h, slope = then.time - now.time, out.velocity
        x = out.x + h * (slope + 0.1 * (slope - SLOPES["last"]))
        SLOPES["last"] = slope
    return x


@broken("densities", stochastic=True)
def two_draws_of_a_step(x, path):
    """Adds noise twice in a step, so that its density is that of the sum, which nothing declares."""
    for now, then in path.steps:
        out = yield x, now
        x = path.draw(path.draw(out.x, 0.1, now, then), 0.1, now, then)
    return x


@broken("densities", stochastic=True)
def mean_of_the_noise(x, path):
    """Draws with a mean that contains noise of its own, which is another one when the step is scored."""
    for now, then in path.steps:
        out = yield x, now
        x = path.draw(out.x + 0.1 * torch.randn_like(x), 0.1, now, then)
    return x


@broken("densities", stochastic=True)
def scaled_after_the_draw(x, path):
    """Scales the drawn state, whose density is then another one."""
    for now, then in path.steps:
        out = yield x, now
        x = 0.9 * path.draw(out.x, 0.1, now, then)
    return x


@broken("densities", stochastic=True, no_density="  ")
def no_reason_for_no_density(x, path):
    """Declares that its steps have no density, and not why."""
    for now, then in path.steps:
        out = yield x, now
        x = path.draw(out.x, 0.1, now, then)
    return x


@broken("densities", no_density="the next state is a function of its draw")
def no_density_without_noise(x, path):
    """Declares a reason for densities that are missing, and draws no noise."""
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then)
    return x


FAULTS = [fault for fault in vars().values() if isinstance(fault, tuple) and len(fault) == 2 and fault[0] in CHECKS]


LONGEST = ("too-little-noise", "rounded-times", "missing-half", "mixed-up-sigmas", "stale-history")
LONGEST += ("single-precision-coefficients", "strong-order-claimed")
"""Faults that take the kit more than a second. All but the last are of checks with other faults."""


@pytest.mark.parametrize(
    ("check", "spec"),
    mostly_slow(FAULTS, keep=lambda _, spec: spec.name not in LONGEST),
    ids=lambda value: getattr(value, "name", None),
)
def test_the_kit_catches_a_planted_fault(check, spec):
    report = check_sampler(spec, checks=[check])
    (finding,) = report
    assert finding.verdict == "fail"
    assert not finding.measured.startswith(("AttributeError", "TypeError", "NameError", "ImportError")), finding
    with pytest.raises(ConformanceError, match=check.split()[0]):
        report.require()


def test_every_check_has_a_fault_that_it_catches():
    assert {check for check, _ in FAULTS} == set(CHECKS)


def test_a_sampler_whose_cost_does_not_grow_ends_the_search_for_a_budget():
    @sds.sampler("one-jump", order=None)
    def one_jump(x, path):
        """All in one step."""
        out = yield x, path.points[0]
        return out.step_to(path.points[-1])

    assert sds.sample(sds.grid_mixture(sds.VP()), one_jump, nfe=8).nfe == 1


def test_no_sampler_is_longer_than_forty_lines():
    for name, spec in sds.samplers().items():
        tree = ast.parse(textwrap.dedent(inspect.getsource(spec.function))).body[0]
        doc = tree.body[0].end_lineno - tree.body[0].lineno + 1
        assert tree.end_lineno - tree.lineno + 1 - doc <= 40, name


@pytest.mark.slow
def test_a_false_order_fails_in_either_direction():
    for order, passes in ((1, False), (2, True), (3, False)):
        spec = sds.samplers()["heun"]
        claim = sds.Sampler(spec.function, "claim", order=order, evaluations=2, coordinates="ve", reference="x")
        assert check_sampler(claim, checks=["ODE order"]).passed is passes


# --- its doors --------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_its_exit_code_tells(tmp_path):
    from click.testing import CliRunner

    from sdesamplers.cli import cli

    run = CliRunner().invoke(cli, ["check", "ddim", "--check", "finite", "--check", "noise"])
    assert run.exit_code == 0
    assert "finite" in run.output
    assert "pass" in run.output
    sds.register(next(spec for check, spec in FAULTS if check == "batch independence"))
    arguments = ["check", "batch-coupling", "--check", "batch independence", "--json"]
    run = CliRunner().invoke(cli, arguments)
    assert run.exit_code == 1
    finding = json.loads(run.stdout)[0]["findings"][0]
    assert finding["verdict"] == "fail"
    assert finding["required"].startswith("<=")


def test_unknown_checks_are_answered_with_the_nearest():
    with pytest.raises(sds.UnknownNameError, match="batch independence"):
        check_sampler("ddim", checks=["batch-independence"])


def test_pytest_runs_the_kit(pytester):
    result = pytester.runpytest_inprocess("--sdesamplers", "ddim", "-k", "noise or finite", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, deselected=len(CHECKS) - 2)


def test_pytest_runs_the_kit_on_a_loose_file_and_reports_a_broken_sampler_once(pytester):
    pytester.makepyfile(
        bad_loose="""
        import sdesamplers as sds

        @sds.sampler("bad-loose", order=1, reference="none")
        def bad_loose(x, path):
            '''Raises.'''
            for now, then in path.steps:
                out = yield x, now
                x = out.stepto(then)
            return x

        @sds.hookimpl
        def sdesamplers_samplers():
            return [bad_loose]
        """
    )
    words = ("--sdesamplers-plugin", "bad_loose.py", "--sdesamplers", "bad-loose", "-p", "no:cacheprovider")
    result = pytester.runpytest_inprocess(*words)
    result.assert_outcomes(passed=1, failed=1, skipped=len(CHECKS) - 2)
    result.stdout.fnmatch_lines(["*AttributeError*stepto*(bad_loose.py, line 8)*"])


@pytest.mark.parametrize(
    "words",
    [("--sdesamplers", "eulr"), pytest.param(("--sdesamplers-plugin", "nowhere.py"), marks=pytest.mark.slow)],
)
def test_pytest_is_called_wrongly(pytester, words):
    result = pytester.runpytest_inprocess(*words, "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "'euler'" in str(result.stderr) + str(result.stdout) or "no such file" in str(result.stderr)


@pytest.mark.parametrize(
    "checks",
    mostly_slow(
        [["push = pull", "options"], ["finite", "push = pull", "free steps", "options"]],
        keep=[["push = pull", "options"]],
    ),
    ids=len,
)
def test_a_recipe_passes_with_its_options(checks):
    report = check_sampler("ode-exact", checks=checks).require()
    assert (report.kind, report.name) == ("sampler", "ode-exact")
    assert {finding.verdict for finding in report} == {"pass"}


def test_a_recipe_is_checked_with_its_options():
    other = check_sampler("ab", options={"order": 2}, checks=["ODE order", "evaluations"])
    assert [finding.verdict for finding in other] == ["skip", "pass"]  # its order is declared for order=4
    with pytest.raises(sds.UsageError, match="has no option 'etta'"):
        check_sampler("ddim", options={"etta": 1.0})


def test_what_the_kit_says_of_faults():
    specs = {spec.name: spec for _, spec in FAULTS}

    def said(name, check):
        (finding,) = check_sampler(specs[name], checks=[check])
        return f"{finding.measured}; {finding.required}"

    assert "draws nothing through path.draw" in said("noise-claimed", "log-probabilities")
    assert "draws nothing through path.draw" in said("noise-claimed", "noise")
    assert "two runs with one seed differ" in said("global-random-numbers", "reproducible")
    assert "random numbers come from path.draw alone" in said("global-random-numbers", "reproducible")
    assert 'needs=("marginals",)' in said("marginals-not-declared", "plain SDE")
    assert "(test_conformance.py, line " in said("crashes-on-flow-models", "finite")


def test_every_check_says_what_it_checks():
    assert all(function.__doc__ for function in CHECKS.values())


@pytest.mark.parametrize("draw", [np.random.rand, random.random])
def test_a_draw_that_leaves_most_of_a_generators_state_is_noticed(draw):
    """One draw of NumPy's Mersenne Twister changes only the position among its 624 numbers."""

    @sds.sampler("one-draw", order=1, reference="none")
    def one_draw(x, path):
        """Euler's method and a number that is not used."""
        draw()
        for now, then in path.steps:
            out = yield x, now
            x = out.step_to(then)
        return x

    draw()
    report = check_sampler(one_draw, checks=["reproducible"])
    assert "a global generator of torch, NumPy or Python was used" in str(report)
