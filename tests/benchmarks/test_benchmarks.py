"""The benchmark suite: its arithmetic against known answers, and its parts and reports on small inputs."""

import importlib
import json
import sys

import pytest
import torch

import sdesamplers as sds

pytestmark = pytest.mark.usefixtures("benchmarks")


def module(name):
    """A fixture that is a benchmark's module."""

    @pytest.fixture(scope="module")
    def load(benchmarks):
        return importlib.import_module(name)

    return load


step_cost, adaptive, startup, suite = map(module, ("step_cost", "adaptive", "startup", "suite"))


# --- step_cost --------------------------------------------------------------------------------------------------------

N = 100
OPERATIONS = {
    "two readings and a writing": (lambda a, b, c: torch.add(a, b, alpha=0.5), 3),
    "the same into a tensor that is there": (lambda a, b, c: torch.add(a, b, alpha=0.5, out=c), 3),
    "in place": (lambda a, b, c: a.add_(b, alpha=0.5), 3),
    "in place with a number": (lambda a, b, c: a.mul_(0.5), 2),
    "an operand that is read twice": (lambda a, b, c: a * a, 3),
    "three operands": (lambda a, b, c: torch.addcmul(a, b, c), 4),
    "a sum": (lambda a, b, c: a.sum(), 1),
    "a copy": (lambda a, b, c: a.copy_(b), 2),
    "a clone": (lambda a, b, c: a.clone(), 2),
    "a writing alone": (lambda a, b, c: a.zero_(), 1),
    "views": (lambda a, b, c: a.view(10, 10)[None].expand(3, 10, 10), 0),
    "an empty tensor": (lambda a, b, c: torch.empty_like(a), 0),
    "a list": (lambda a, b, c: torch.stack([a, b]), 3),
    "small tensors": (lambda a, b, c: a[:50] + b[:50], 0),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("inference", [True, False])
def test_passes_are_counted(step_cost, name, inference):
    operation, passes = OPERATIONS[name]
    with torch.inference_mode(inference):
        tensors = [torch.ones(N) for _ in range(3)]
        with step_cost.Passes(N) as counter:
            operation(*tensors)
    assert counter.count == passes


def test_a_step_s_passes_are_those_of_its_operations(step_cost):
    """A sampler written out here: x - v in one kernel, 3, and the reading of the check, 1."""

    @sds.sampler("plain", order=1)
    def plain(x, path):
        """x - v."""
        for now, _ in path.steps:
            out = yield x, now
            x = torch.sub(out.x, out.raw)
        return x

    case = step_cost.Case("plain", plain, sds.RectifiedFlow, "flow", 3, "x, v to x'", kwargs=step_cost.NATIVE)
    assert step_cost.passes_made(case) == 4


def test_no_method_makes_fewer_passes_than_its_fewest(step_cost):
    made = {case.name: step_cost.passes_made(case) for case in step_cost.CASES}
    for case in step_cost.CASES:
        assert made[case.name] >= case.fewest, case.name
    # Euler with the velocity given is one kernel beside the reading of the finite check.
    assert made["euler, velocity"] == 4
    # With epsilon the fewest are the same; a sampler that stores the velocity first makes more.
    assert made["euler, epsilon"] >= made["euler, velocity"]


def test_steps_are_metered_between_calls(step_cost):
    """A meter that counts its own readings gains one an evaluation, so 2 a step of heun; first steps are left out."""
    readings = iter(range(1000))
    heun = next(case for case in step_cost.CASES if case.name.startswith("heun"))
    assert heun.evaluations == 2
    found = step_cost.steps_of(heun, step_cost.State.of(10), lambda: next(readings), steps=8)
    assert found == [2] * 5


def test_step_cost_is_measured_and_reported(step_cost, tmp_path, monkeypatch):
    monkeypatch.setattr(step_cost, "keep_freed_memory", lambda: False)  # it would hold for the rest of the tests
    monkeypatch.setattr(step_cost, "rounds_for", lambda size: 2)
    step_cost.main(["--out", str(tmp_path), "--quick", "--largest", "1e4"])
    facts = json.loads((tmp_path / "step_cost.json").read_text())
    assert {row["size"] for row in facts["rows"]} == {1000, 10_000}
    assert len(facts["rows"]) == 2 * len(step_cost.CASES)
    adds = {row["size"]: row["add"]["median"] for row in facts["plain"]}
    for row in facts["rows"]:
        assert row["limit"] == pytest.approx(row["fewest"] * adds[row["size"]] / 3)
        assert row["ratio"] == pytest.approx(row["seconds"]["median"] / row["limit"])
        assert row["ratio"] > 1, "a step was faster than the memory traffic that it cannot do without"
    assert facts["targets"] == []  # such states are too small for the bandwidth of memory to rule
    assert facts["left_out"] == ["allocator 'kept': this system's malloc has no mallopt"]
    text = (tmp_path / "step_cost.md").read_text()
    assert "| euler, velocity | 3 | x, v to x' | 4 |" in text
    assert (tmp_path / "step_cost.png").stat().st_size > 10_000


def test_sizes_without_room_are_left_out(step_cost, monkeypatch):
    monkeypatch.setattr(step_cost, "keep_freed_memory", lambda: False)
    monkeypatch.setattr(step_cost, "rounds_for", lambda size: 1)
    monkeypatch.setattr(step_cost, "memory", lambda field: 1e6)  # 10 tensors of 4 bytes and 1e5 numbers are 4e6
    facts = step_cost.run([1000, 100_000], step_cost.CASES[:1], lambda line: None)
    assert {row["size"] for row in facts["rows"]} == {1000}
    assert facts["left_out"][0].startswith("1e5 elements")


def test_the_largest_size_is_what_is_required(step_cost):
    row = {"case": "euler", "allocator": "kept"}
    rows = [{**row, "size": size, "ratio": ratio} for size, ratio in ((10**7, 9.0), (10**8, 1.5), (10**8, 1.6))]
    found = step_cost.targets(rows)
    assert [(t["measured"], t["limit"], t["met"]) for t in found] == [(1.5, 1.5, True), (1.6, 1.5, False)]
    assert found[0]["what"] == "time over limit, euler, 1e8 elements, kept allocator"


def test_growth_is_the_power_of_the_size(step_cost):
    of = {size: {"seconds": {"median": 3e-9 * size**1.5}} for size in (10, 1000)}
    assert step_cost.growth(of, [10, 1000]) == "n^1.50"


# --- adaptive ---------------------------------------------------------------------------------------------------------


def test_evaluations_at_equal_error_are_exact_on_a_power_law(adaptive):
    """error = 10 n^-4, so n = (10 / error)^(1/4), wherever the curve's points are."""
    curve = [(n, 10 * n**-4.0) for n in (80, 7, 20, 33, 11)]
    for error in (1e-3, 1e-4, 1e-6):
        assert adaptive.evaluations_at(error, curve) == pytest.approx((10 / error) ** 0.25, rel=1e-12)
    assert adaptive.evaluations_at(10 * 7**-4.0, curve) == pytest.approx(7)
    assert adaptive.evaluations_at(1e-8, curve) is None
    assert adaptive.evaluations_at(1.0, curve) is None
    assert adaptive.evaluations_at(1.0, []) is None


def test_points_that_cost_more_and_are_no_nearer_do_not_count(adaptive):
    curve = [(10, 1e-1), (15, 3e-1), (20, float("nan")), (40, 1e-3)]
    middle = adaptive.evaluations_at(1e-2, curve)
    assert middle == pytest.approx(20)  # halfway between 10 and 40 in the logarithm
    assert adaptive.evaluations_at(2e-1, curve) is None


@pytest.fixture(scope="module")
def mixture(adaptive):
    return adaptive.mixture(3, "flow")


@pytest.mark.slow
def test_every_solver_converges_to_the_independent_truth(adaptive, mixture):
    """Error control makes the error proportional to the tolerance; a tenth of that is asked for a hundredth of it."""
    made, missing = adaptive.solvers(mixture, "flow")
    assert {"rk45", "dpm-adaptive", "scipy RK45, a sample", "scipy RK45, a batch"} <= set(made)
    assert set(made) | set(missing) >= {"torchdiffeq dopri5, a sample", "k-diffusion dpm_adaptive, a batch"}
    for name, solve in made.items():
        curve = adaptive.sweep(name, solve, mixture.truth, (1e-3, 1e-5), print)
        (_, few, loose, _), (_, many, tight, _) = curve.points
        assert few < many, name
        assert tight < loose / 10, name
    for name in ("rk45", "scipy RK45, a sample"):
        assert adaptive.sweep(name, made[name], mixture.truth, (1e-9,), print).points[0][2] < 1e-7, name


def test_our_count_is_the_model_s(adaptive, mixture):
    calls = []
    counted = adaptive.Problem("counted", mixture.process, None, mixture.start[:1], None, torch.float64)
    counted.predict = lambda x, t: calls.append(len(x)) or mixture.predict(x, t)
    for name, solve in adaptive.solvers(counted, "flow")[0].items():
        calls.clear()
        assert solve(1e-2)[1] == len(calls), name


def test_a_missing_peer_is_left_out_with_a_reason(adaptive, mixture, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    made, missing = adaptive.solvers(mixture, "native")
    assert list(made) == ["rk45", "scipy RK45, a sample", "scipy RK45, a batch"]
    assert set(missing) == {"torchdiffeq dopri5, a sample", "torchdiffeq dopri5, a batch"}


def test_a_solver_that_gives_up_has_no_point(adaptive, mixture):
    def solve(tolerance):
        if tolerance < 1e-3:
            raise sds.SolverError("too hard")
        return mixture.truth + 2.0, 5.0

    lines = []
    curve = adaptive.sweep("weak", solve, mixture.truth, (1e-2, 1e-4), lines.append)
    assert curve.points == [(1e-2, 5.0, pytest.approx(2.0), pytest.approx(2.0))]
    assert lines[0] == "weak at 0.0001 gave up: too hard"


def test_the_adaptive_report_compares_at_equal_error(adaptive, tmp_path):
    curves = [{"name": "rk45", "points": [(0, 10, 1e-1, 1e-1), (0, 100, 1e-5, 1e-5)]}]
    curves += [{"name": "scipy RK45, a sample", "points": [(0, 20, 1e-1, 1e-1), (0, 200, 1e-5, 1e-5)]}]
    part = {"title": "made up", "errors": [1.0, 1e-3], "curves": curves}
    assert adaptive.ratio_table(part, "rmse") == [
        "| rmse error | 0.001 |",
        "|---|--:|",
        "| rk45 | 32 |",
        "| scipy RK45, a sample | 63 (2.00) |",
    ]
    facts = {"machine": importlib.import_module("machine").machine(), "problems": [part], "left_out": {"peer": "why"}}
    (tmp_path / "adaptive.json").write_text(json.dumps(facts))
    adaptive.main(["--out", str(tmp_path), "--report"])
    assert "Left out: peer (why)." in (tmp_path / "adaptive.md").read_text()
    assert (tmp_path / "adaptive.png").stat().st_size > 10_000


# --- startup ----------------------------------------------------------------------------------------------------------


def test_start_up_is_timed_and_what_fails_is_left_out(startup):
    slow = "import time; time.sleep(0.1)"
    commands = {startup.BARE: ["-c", "pass"], "slow": ["-c", slow], "broken": ["-c", "import nowhere_at_all"]}
    facts = startup.run(commands, 2)
    medians = {row["name"]: row["seconds"]["median"] for row in facts["rows"]}
    assert list(medians) == [startup.BARE, "slow"]
    assert medians["slow"] >= 0.1
    assert facts["left_out"] == {"broken": "ModuleNotFoundError: No module named 'nowhere_at_all'"}
    text = startup.report(facts)
    assert f"| {startup.BARE} | {medians[startup.BARE] * 1e3:.0f} [" in text
    assert "Left out: broken" in text


def test_every_line_of_the_start_up_table_runs(startup):
    """Those of this library alone; torch's and the peers' are not ours to test."""
    for name in (startup.BARE, "import sdesamplers", "sdesamplers --help"):
        assert startup.once(startup.COMMANDS[name]) > 0


# --- the suite --------------------------------------------------------------------------------------------------------

GOOD = """
import json, os, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
print("measuring")
assert os.environ["OMP_NUM_THREADS"] == "1"
targets = [{"what": "a ratio", "measured": 2.0, "limit": 1.5, "met": False}]
(out / "good.json").write_text(json.dumps({"targets": targets, "arguments": sys.argv[1:]}))
(out / "good.md").write_text("# Good, and quick\\n\\n## Inside\\n\\n![shown](good.png)\\n")
for name in ("good.png", "good_more.png"):
    (out / name).write_bytes(b"a picture")
"""
FILES = {
    "good": GOOD,
    "fails": "print('about to fail'); raise ValueError('no such luck [/]')",
    "absent_peer": "import azula_of_course_not",
    "cannot": "print('this machine has no gloo'); raise SystemExit(77)",
    "silent": "pass",
    "knows_quick": "import sys\n'parser has' '--quick'\nraise SystemExit(0 if \"--quick\" in sys.argv else 5)",
}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "benchmarks"
    place.mkdir()
    for name, text in FILES.items():
        (place / f"{name}.py").write_text(text)
    (place / "breaks.py").write_text("raise SystemExit(3)")
    return place


def outcomes_of(out):
    return {part["name"]: part for part in json.loads((out / "suite.json").read_text())["parts"]}


def test_a_part_that_fails_is_reported_and_the_suite_goes_on(suite, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "PEERS", (*suite.PEERS, "azula_of_course_not"))
    names = ["fails", "absent_peer", "cannot", "silent", "nowhere", "good"]
    parts = [suite.Part(name, f"about {name}") for name in names]
    parts += [suite.Part("valgrinded", "", programs=("no-such-program",))]
    (folder / "valgrinded.py").write_text("pass")
    out = tmp_path / "out"
    assert suite.main(["--out", str(out)], parts, folder) == 1
    found = outcomes_of(out)
    assert {name: each["state"] for name, each in found.items()} == {
        "fails": "failed",
        "absent_peer": "not run",
        "cannot": "not run",
        "silent": "failed",
        "nowhere": "not run",
        "good": "done",
        "valgrinded": "not run",
    }
    assert "no such luck" in found["fails"]["why"]
    assert "azula_of_course_not is not installed" in found["absent_peer"]["why"]
    assert found["cannot"]["why"] == "this machine has no gloo"
    assert found["silent"]["why"].startswith("it wrote no silent.md")
    assert found["nowhere"]["why"] == "there is no nowhere.py in benchmarks/"
    assert found["valgrinded"]["why"] == "no-such-program is not installed"
    assert "about to fail" in (out / "logs" / "fails.log").read_text()
    assert "report:" in capsys.readouterr().err


def test_the_report_holds_every_part_with_its_pictures_and_targets(suite, folder, tmp_path):
    out = tmp_path / "out"
    parts = [suite.Part("good", "a good part")]
    assert suite.main(["--out", str(out), "--commit", "abc123"], parts, folder) == 0
    text = (out / "report.md").read_text()
    assert "Commit abc123" in text
    assert "| [good](#good-and-quick) | a good part | done |" in text
    assert "| good | a ratio | 2 | 1.5 | **missed** |" in text
    assert "\n## Good, and quick\n" in text
    assert "\n### Inside\n" in text
    assert text.count("(good.png)") == 1
    assert "![good_more](good_more.png)" in text
    assert "quick run" not in text


def test_quick_is_passed_on_as_a_part_knows_it(suite, folder, tmp_path):
    parts = [suite.Part("good", "", small=("--steps", "3")), suite.Part("knows_quick", "")]
    out = tmp_path / "out"
    suite.main(["--out", str(out), "--quick"], parts, folder)
    assert json.loads((out / "good.json").read_text())["arguments"] == ["--out", str(out), "--steps", "3"]
    assert outcomes_of(out)["knows_quick"]["why"].startswith("it wrote no")  # so it ran, with --quick
    assert "**A quick run" in (out / "report.md").read_text()


def test_only_runs_what_is_named_and_keeps_the_rest(suite, folder, tmp_path):
    parts = [suite.Part("good", ""), suite.Part("fails", ""), suite.Part("breaks", "")]
    out = tmp_path / "out"
    assert suite.main(["--out", str(out), "--only", "good"], parts, folder) == 0
    assert outcomes_of(out)["fails"]["state"] == "not run"
    assert suite.main(["--out", str(out), "--only", "breaks"], parts, folder) == 1
    found = outcomes_of(out)
    assert found["good"]["state"] == "kept"
    assert "exit code 3" in found["breaks"]["why"]
    assert "## Good, and quick" in (out / "report.md").read_text()
    with pytest.raises(SystemExit) as error:
        suite.main(["--out", str(out), "--only", "nonsense"], parts, folder)
    assert error.value.code == 2


def test_ctrl_c_leaves_a_report_of_what_was_done(suite, folder, tmp_path, monkeypatch):
    call = suite.call

    def interrupted(command, log, say):
        if command[1].endswith("fails.py"):
            raise KeyboardInterrupt
        return call(command, log, say)

    monkeypatch.setattr(suite, "call", interrupted)
    parts = [suite.Part(name, "") for name in ("good", "fails", "silent")]
    out = tmp_path / "out"
    assert suite.main(["--out", str(out)], parts, folder) == 130
    states = {name: (each["state"], each["why"]) for name, each in outcomes_of(out).items()}
    assert states["good"] == ("done", "")
    assert states["fails"] == states["silent"] == ("not run", "interrupted")
    assert "## Good, and quick" in (out / "report.md").read_text()


def test_the_command_of_make_bench_exists(suite, benchmarks):
    makefile = (benchmarks.parent / "Makefile").read_text()
    assert "benchmarks/suite.py --out out/benchmarks" in makefile
    assert {part.name for part in suite.PARTS} >= {"overhead", "adaptive", "scaling", "memory", "startup"}
    described = (benchmarks / "README.md").read_text()
    for part in suite.PARTS:
        assert f"`{part.name}`" in described, part.name
