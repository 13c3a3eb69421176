"""The work-precision benchmark on a few starts: its model, its truth, its counts and its report."""

import importlib
import json

import pytest
import torch

import sdesamplers as sds


@pytest.fixture(scope="module")
def benchmark(studies):
    return importlib.import_module("work_precision")


@pytest.fixture(scope="module")
def problems(studies):
    return importlib.import_module("problems")


@pytest.fixture(scope="module")
def problem(problems):
    return problems.mixture(8)


@pytest.fixture(scope="module")
def diffusers_settings(benchmark):
    settings = importlib.import_module(benchmark.PEERS["diffusers"]).settings()
    return {setting.name: setting for setting in settings}


def ours(benchmark, sampler="ddim", spacing="linspace", coordinates="native", **options):
    return benchmark.our_setting(sampler, options, spacing, {}, coordinates)


def test_the_mixture_is_the_library_s(problems):
    model = problems.Mixture()
    exact = sds.MixtureModel(model.weights, model.means, model.variances, model.process)
    x = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.0, 3.5, 200.0, 700.0, 999.0]).double().numpy()
    torch.testing.assert_close(model.predict(x, times), exact.predict(x, times))
    torch.testing.assert_close(model.predict(x, 200.0), exact.predict(x, 200.0))
    within = model.variances + (model.means - model.weights @ model.means).square()
    assert float((model.weights @ within).mean()) == pytest.approx(0.5)


def test_the_truth_is_what_fine_grids_converge_to(benchmark, problem):
    errors = [benchmark.measure(ours(benchmark, "dpmpp-2m", "karras"), problem, nfe)["rmse"] for nfe in (100, 200, 400)]
    assert errors[2] < errors[1] / 3 < errors[0] / 9
    assert errors[2] < 1e-4


def test_the_networks_truth_is_the_mixtures_too(problems, problem):
    got = problems.network_truth(problems.Mixture(), problem.start)
    torch.testing.assert_close(got, problem.truth, rtol=0, atol=1e-7)


def test_evaluations_are_counted_and_budgets_kept(benchmark, problem):
    assert benchmark.measure(ours(benchmark), problem, 10)["nfe"] == 10
    assert benchmark.measure(ours(benchmark, "heun", coordinates="ve"), problem, 10)["nfe"] == 9

    def ask(problem, steps):
        for _ in range(11):
            answer = problem.eps(problem.start, 500.0)
        return answer

    greedy = benchmark.Setting("peer", "asks 11 times", ask)
    assert benchmark.measure(greedy, problem, 10) is None
    assert benchmark.measure(greedy, problem, 11)["nfe"] == 11
    wild = benchmark.Setting("peer", "NaN", lambda p, steps: p.eps(p.start, 500.0) * float("nan"))
    assert benchmark.measure(wild, problem, 11) is None


def test_diffusers_runs_in_the_same_coordinates(benchmark, problem, diffusers_settings):
    """The same method and grid in the other library must make the same error: starts, ends and scales agree."""
    for peer, own in (("DDIM trailing", ours(benchmark, spacing="trailing")), ("EulerDiscrete linspace", None)):
        theirs = benchmark.measure(diffusers_settings[peer], problem, 10)
        mine = benchmark.measure(own or ours(benchmark, "euler", coordinates="ve"), problem, 10)
        assert theirs["rmse"] == pytest.approx(mine["rmse"], rel=0.02), peer
    multistep = benchmark.measure(diffusers_settings["HeunDiscrete karras_sigmas"], problem, 10)
    assert multistep["nfe"] == 9


def test_every_sampler_that_fits_is_tried_and_copies_are_kept_once(benchmark):
    lines = []
    grids = {"linspace": [{}]}
    kept = benchmark.our_settings(["ddim", "euler", "heun", "ddpm"], grids, lines.append)
    names = [setting.name for setting in kept]
    assert "ddim, linspace, native" in names
    assert "euler, linspace, ve" not in names  # DDIM
    assert "euler, linspace, angle" in names
    assert not any(name.startswith("ddpm") for name in names)
    assert "more give the same samples" in lines[-1]


def test_a_missing_peer_is_left_out_with_a_line(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "PEERS", {"nowhere": "peers.nowhere"})
    lines = []
    assert benchmark.peer_settings(lines.append) == []
    assert "nowhere is left out" in lines[0]
    assert "requirements.txt" in lines[0]


def test_cells_are_kept_and_the_report_is_written(benchmark, problem, diffusers_settings, tmp_path):
    log = benchmark.Log(tmp_path / "cells.jsonl")
    settings = [ours(benchmark), ours(benchmark, "dpmpp-2m", "karras"), diffusers_settings["DDIM trailing"]]
    benchmark.run_all(log, problem, settings, (5, 10))
    again = benchmark.Log(tmp_path / "cells.jsonl")
    assert again.cells == log.cells
    assert len(log.cells) == 6
    chosen = benchmark.finalists(log, problem, settings, 1, (5,))[5]
    assert {setting.library for setting in chosen} == {"sdesamplers", "diffusers"}
    pytest.importorskip("matplotlib")
    cells = benchmark.table(log, problem.name, 8)
    shown = [(f"{problem.name}, 8 starts", "how it was run", cells, cells)]
    benchmark.report(shown, benchmark.compact(log), tmp_path, tmp_path, ["a note"])
    text = (tmp_path / "work_precision.md").read_text()
    assert "### By RMSE" in text
    assert "diffusers: DDIM trailing" in text
    assert (tmp_path / "work_precision.png").stat().st_size > 10_000
    cells = json.loads((tmp_path / "work_precision.json").read_text())["cells"]
    assert len(cells[problem.name]["8"]) == 3


@pytest.fixture(scope="module")
def tournament(studies):
    return importlib.import_module("tournament")


def errors_file(folder, number, errors):
    lines = [json.dumps([key, budget, values]) for (key, budget), values in errors.items()]
    (folder / f"final-{number}.jsonl").write_text("\n".join(lines) + "\n")


def test_errors_are_of_the_settings_that_ran_on_the_same_blocks(tournament, tmp_path):
    errors_file(tmp_path, 0, {("a", 5): [1.0, 2.0], ("b", 5): [3.0, 4.0], ("c", 5): [0.0, 0.0], ("a", 8): [9.0]})
    errors_file(tmp_path, 10, {("b", 5): [7.0, 8.0], ("a", 5): [5.0, 6.0]})
    found = tournament.errors_of(tmp_path)
    assert {b: {k: v.tolist() for k, v in group.items()} for b, group in found.items()} == {
        5: {"a": [1.0, 2.0, 5.0, 6.0], "b": [3.0, 4.0, 7.0, 8.0]},
        8: {"a": [9.0]},
    }
    assert list(tournament.errors_of(tmp_path, range(2))[5]) == ["a", "b", "c"]
    assert tournament.starts_of(found) == "4 starts at 5 and 1 starts at 8"


def test_in_the_last_round_the_best_of_ours_meet_the_best_of_the_others(benchmark, tournament):
    names = ["sdesamplers: ddim, linspace, native", "sdesamplers: ab, angle final=min, ve", "diffusers: A", "azula: B"]
    names += ["azula: C", "azula: D"]
    settings = [tournament.parsed(n) if n.startswith("sde") else benchmark.Setting(*n.split(": "), None) for n in names]
    assert [setting.key for setting in settings] == names
    # Of ours one has the lower RMSE, one the lower median. A and B are twins, of which the first by name goes on.
    rows = ([2.0, 2.0, 2.0], [1.0, 1.0, 9.0], [3.0] * 3, [3.0] * 3, [4.0] * 3, [5.0] * 3)
    errors = {name: benchmark.np.array(values) for name, values in zip(names, rows, strict=True)}
    left = tournament.duel({5: settings}, {5: errors})
    assert [setting.key for setting in left[5]] == [names[0], names[1], names[3], names[4]]
