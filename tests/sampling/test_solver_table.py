"""Solver tables as samplers: a recursion in NumPy, files, and every mistake in one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.sampling.table import signature

pytestmark = pytest.mark.filterwarnings("ignore:the grid starts from pure noise")

ANGLES = (1.2, 0.7, 0.3, 0.0)
WEIGHTS = ((0.05, 0.9, -0.4), (0.02, 0.93, 0.1, -0.5), (-0.03, 0.97, 0.02, 0.05, -0.35))
NETWORK_ANGLES = (1.2, 0.75, 0.28)
TABLE = sds.SolverTable(ANGLES, WEIGHTS, NETWORK_ANGLES, {"model": "linear"})
RATE = 0.3


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """An x0 prediction that depends on the time."""
    return RATE * x * torch.cos(t) + 0.1 * t


def model(process: Any = None) -> sds.FunctionModel:
    """TrigFlow's time is the angle itself, and its state that of a table."""
    return sds.FunctionModel(network, process or sds.TrigFlow(), "sample", (3,), name="linear", dtype=torch.float64)


def recursion(start: np.ndarray, table: sds.SolverTable) -> np.ndarray:
    """The table's recursion with `network`, in NumPy."""
    y, velocities = start, []
    asked = table.network_angles or table.angles[:-1]
    for phi, psi, row in zip(table.angles[:-1], asked, table.weights, strict=True):
        x0 = RATE * y * np.cos(psi) + 0.1 * psi
        eps = (y - math.cos(phi) * x0) / math.sin(phi)
        velocities.append(-math.sin(phi) * x0 + math.cos(phi) * eps)
        y = row[0] * start + row[1] * y + sum(w * v for w, v in zip(row[2:], velocities, strict=True))
    return y


@pytest.mark.parametrize("shifted", [True, False])
def test_a_table_is_its_recursion(shifted):
    table = TABLE if shifted else replace(TABLE, network_angles=())
    start = torch.linspace(-1, 2, 6, dtype=torch.float64).view(2, 3)
    found = sds.sample(model(), table, start=start, dtype=torch.float64)
    np.testing.assert_allclose(found.samples.numpy(), recursion(start.numpy(), table), rtol=1e-12, atol=1e-13)
    assert found.nfe == 3


ZERO_SNR = {
    "zero-snr": sds.DiscreteVP(np.linspace(0.9999, 1e-4, 1000) ** 2).with_zero_terminal_snr(),
    "long": sds.VP(T=10.0),  # sigma/alpha is 7e21 at its end, an angle of pi/2 to the last bit
    "flow": sds.RectifiedFlow(),
}


@pytest.mark.parametrize("coordinates", ["native", "flow", "angle"])
@pytest.mark.parametrize("process", ZERO_SNR)
def test_a_table_starts_from_pure_noise(process, coordinates):
    table = replace(TABLE, angles=(math.pi / 2, *ANGLES[1:]), network_angles=())
    mean, variance = np.array([1.0, -0.5]), np.array([0.1, 0.6])
    start = torch.tensor([[0.3, -1.2], [0.8, 0.1]], dtype=torch.float64)
    y = noise = start.numpy()
    velocities = []
    for phi, row in zip(table.angles[:-1], table.weights, strict=True):  # the exact velocity of a Gaussian
        alpha, sigma = math.cos(phi), math.sin(phi)
        x0 = mean + alpha * variance * (y - alpha * mean) / (alpha**2 * variance + sigma**2)
        velocities.append((alpha * y - x0) / sigma)
        y = row[0] * noise + row[1] * y + sum(w * v for w, v in zip(row[2:], velocities, strict=True))
    gaussian = sds.GaussianModel(mean, variance, ZERO_SNR[process], prediction="v")
    found = sds.sample(gaussian, table, start=start, dtype=torch.float64, coordinates=coordinates).samples
    np.testing.assert_allclose(found.numpy(), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", [sds.VE(0.01, 1348.0), sds.EDM(0.002, 1e6), sds.VE(0.01, 1e7)], ids=repr)
def test_a_table_starts_at_a_large_sigma(process):
    """The tangent of an angle near pi/2 has few digits; DDIM in two steps on data at 0 ends there."""
    first = math.atan(float(process.ratio(process.t_max)))
    middle, steps = 0.7, (0.7 - first, -0.7)
    rows = ((0.0, math.cos(steps[0]), math.sin(steps[0])), (0.0, math.cos(steps[1]), 0.0, math.sin(steps[1])))
    table = sds.SolverTable((first, middle, 0.0), rows, (first, middle))
    gaussian = sds.GaussianModel([0.5, -0.5], 1e-12, process)
    found = sds.sample(gaussian, table, num_samples=2, dtype=torch.float64).samples
    np.testing.assert_allclose(found.numpy(), [[0.5, -0.5]] * 2, atol=1e-5)


@pytest.mark.parametrize("coordinates", ["native", "ve", "flow", "angle"])
def test_coordinates_do_not_change_it(coordinates):
    process = sds.VP()
    arguments: dict[str, Any] = {"num_samples": 2, "dtype": torch.float64}
    mixture = sds.MixtureModel([0.4, 0.6], [[1.0, -0.5], [-0.7, 0.8]], [0.1, 0.3], process)
    table = replace(TABLE, angles=(math.atan(float(process.ratio(1.0))), *ANGLES[1:]), network_angles=())
    expected = sds.sample(mixture, table, **arguments).samples
    found = sds.sample(mixture, table, coordinates=coordinates, **arguments).samples
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_network_receives_the_shifted_times():
    times = []

    def noting(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(float(t.flatten()[0]))
        return network(x, t)

    sds.sample(sds.FunctionModel(noting, sds.TrigFlow(), "sample", (3,), dtype=torch.float64), TABLE)
    np.testing.assert_allclose(times, NETWORK_ANGLES, rtol=1e-12)


def test_a_file_keeps_every_bit(tmp_path):
    file = TABLE.save(tmp_path)
    assert file.name == "nfe-3.json"
    read = sds.SolverTable.load(tmp_path)
    assert (read.angles, read.weights, read.network_angles) == (ANGLES, WEIGHTS, NETWORK_ANGLES)
    assert read.facts == {"model": "linear"}
    assert sds.SolverTable.load(file) == read
    assert json.loads(file.read_text())["version"] == 1


def test_a_recipe_of_plain_data_repeats_a_table(tmp_path):
    first = sds.sample(model(), TABLE, num_samples=2)
    stored = json.loads(json.dumps(first.recipe.as_dict()))
    assert torch.equal(sds.sample(model(), stored, num_samples=2).samples, first.samples)
    TABLE.save(tmp_path)
    assert torch.equal(sds.sample(model(), str(tmp_path), nfe=3, num_samples=2).samples, first.samples)
    assert torch.equal(sds.sample(model(), str(tmp_path / "nfe-3.json"), num_samples=2).samples, first.samples)


def test_an_evaluation_budget_picks_its_table_of_a_folder(tmp_path):
    TABLE.save(tmp_path)
    two = sds.SolverTable((1.2, 0.5, 0.0), ((0.0, 0.8, -0.6), (0.0, 0.9, 0.0, -0.5)))
    two.save(tmp_path)
    assert sds.sample(model(), str(tmp_path), nfe=2).nfe == 2
    assert sds.sample(model(), str(tmp_path), steps=3).nfe == 3
    with pytest.raises(sds.UsageError, match=r"no solver table for 5 evaluations, only for 2, 3$"):
        sds.sample(model(), str(tmp_path), nfe=5)
    with pytest.raises(sds.UsageError, match="tables for 2, 3 evaluations; choose one with nfe="):
        sds.sample(model(), str(tmp_path))


def test_a_guidance_scale_picks_its_table_and_another_is_warned_of(tmp_path):
    def network(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return 0.2 * x if label is None else 0.2 * x + 0.1 * label[:, None].to(x)

    guided = sds.FunctionModel(network, sds.TrigFlow(), "sample", (3,), conditional=True, null_condition=0)
    for scale, last in ((1.0, -0.3), (3.0, -0.4)):
        rows = (*WEIGHTS[:2], (*WEIGHTS[2][:-1], last))
        sds.SolverTable(ANGLES, rows, facts={"guidance_scale": scale}).save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["nfe-3-guidance-3.json", "nfe-3.json"]
    call: dict[str, Any] = {"condition": 1, "nfe": 3}
    for scale, last in ((1.0, -0.3), (3.0, -0.4)):
        recipe = sds.sample(guided, str(tmp_path), guidance_scale=scale, **call).recipe
        assert recipe.options["weights"][-1][-1] == last
    with pytest.raises(
        sds.UsageError, match="tables of 3 evaluations for guidance scales 1, 3; pass one of these, or name"
    ):
        sds.sample(guided, str(tmp_path), guidance_scale=2.0, **call)
    with pytest.warns(UserWarning, match="computed for guidance_scale=3, and this run has 2"):
        sds.sample(guided, str(tmp_path / "nfe-3-guidance-3.json"), guidance_scale=2.0, **call)


def swapped(data: dict[str, Any]) -> dict[str, Any]:
    row = data["weights"][1]
    row[2], row[3] = row[3], row[2]
    return data


FAULTS: dict[str, tuple[Any, str]] = {
    "permuted column": (swapped, "the checksum sha256"),
    "another version": (lambda d: {**d, "version": 2}, "version 2; this release of sdesamplers reads 1"),
    "another format": (lambda d: {**d, "format": "x"}, "not a solver table"),
    "a list": (lambda d: [d], "not a solver table"),
    "other coordinates": (lambda d: {**d, "coordinates": "ve"}, "coordinates must be 'angle', not 've'"),
    "an unknown key": (lambda d: {**d, "wieghts": 1}, "no key 'wieghts'"),
    "no weights": (lambda d: {k: v for k, v in d.items() if k != "weights"}, "has no weights"),
    "a short row": (
        lambda d: {**d, "weights": [[1.0, 2.0], *d["weights"][1:]]},
        r"weights\[0\] .* must have 3 numbers",
    ),
    "a row too few": (lambda d: {**d, "weights": d["weights"][:2]}, "with 4 angles has 3 rows, not 2"),
    "text in a row": (lambda d: {**d, "weights": [["a", 1, 2], *d["weights"][1:]]}, "finite numbers, not 'a'"),
    "a huge weight": (lambda d: {**d, "weights": [[1e9, 1, 2], *d["weights"][1:]]}, "beyond 1e\\+06"),
    "rising angles": (lambda d: {**d, "angles": [0.1, 0.7, 0.3, 0.0]}, "angles must fall"),
    "an angle out of range": (lambda d: {**d, "angles": [2.0, 0.7, 0.3, 0.0]}, "from pi/2 or less to 0 or more"),
    "a time out of range": (lambda d: {**d, "network_angles": [1.2, 0.7, 0.0]}, "above 0 and be at most pi/2"),
    "a time too few": (lambda d: {**d, "network_angles": [1.2]}, "that many network_angles, not 1"),
    "facts of another kind": (lambda d: {**d, "facts": 3}, "facts must be a mapping"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_refused_in_a_line(tmp_path, fault):
    change, reason = FAULTS[fault]
    file = TABLE.save(tmp_path)
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(sds.UsageError, match=reason) as error:
        sds.SolverTable.load(tmp_path)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"angles": NaN}', "\x00"])
def test_a_file_that_is_not_json_is_refused_in_a_line(tmp_path, text):
    (tmp_path / "nfe-3.json").write_text(text)
    with pytest.raises(sds.UsageError, match="not a solver table"):
        sds.SolverTable.load(tmp_path)


def test_a_folder_without_tables_and_a_missing_file(tmp_path):
    with pytest.raises(sds.UsageError, match="has no solver tables"):
        sds.SolverTable.load(tmp_path)
    with pytest.raises(sds.UsageError, match="No such file"):
        sds.SolverTable.load(tmp_path / "nfe-3.json")


CALLS: dict[str, tuple[Any, str]] = {
    "another budget": (lambda m: sds.sample(m, TABLE, nfe=4), "no solver table for 4 evaluations, only for 3"),
    "a spacing": (lambda m: sds.sample(m, TABLE, spacing="karras"), "its own grid, so spacing="),
    "a last sigma": (lambda m: sds.sample(m, TABLE, final="min"), "its own grid, so final="),
    "sigmas": (lambda m: sds.sample(m, TABLE, sigmas=[2.0, 1.0, 0.0]), "its own grid, so sigmas="),
    "an encoding": (lambda m: sds.encode(m, torch.zeros(1, 3), TABLE), "has no inverse"),
    "a likelihood": (lambda m: sds.log_likelihood(m, torch.zeros(1, 3), TABLE), "has no inverse"),
    "a model's own": (lambda m: sds.sample(m, "tuned", nfe=3), "this model has none; compute one with sds.tune"),
    "weights in rows": (lambda m: sds.sample(m, "table", steps=2, weights=[0.5, 1.0]), "option 'weights' must be"),
    "rows of others": (lambda m: sds.sample(m, "table", steps=2, weights=WEIGHTS), "for 2 steps has that many rows"),
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_a_table_does_not_fit(call):
    function, reason = CALLS[call]
    with pytest.raises(sds.UsageError, match=reason):
        function(model())


def test_the_recipe_of_a_table_does_not_run_backwards():
    recipe = sds.sample(model(), replace(TABLE, angles=(1.2, 0.7, 0.3, 0.1))).recipe
    with pytest.raises(sds.UsageError):
        sds.encode(model(), torch.zeros(1, 3), recipe)


def test_a_start_above_the_models_is_of_another_process():
    with pytest.raises(sds.UsageError, match="it was computed for another process"):
        sds.sample(model(sds.EDM(sigma_max=2.0)), TABLE)


def test_a_model_with_other_weights_is_refused(tmp_path):
    def of(scale: float) -> sds.FunctionModel:
        net = torch.nn.Linear(3, 3)
        torch.nn.init.constant_(net.weight, scale)
        torch.nn.init.constant_(net.bias, scale)
        return sds.FunctionModel(lambda x, t: net(x), sds.TrigFlow(), "sample", (3,), name=f"net {scale}")

    table = replace(TABLE, facts={"model": "net 1.0", "signature": signature(of(1.0))})
    expected = sds.sample(of(2.0), table.for_any_model()).samples
    with pytest.raises(sds.UsageError, match=r"computed for another model, 'net 1.0', and its errors on 'net 2.0' are"):
        sds.sample(of(2.0), table)
    sds.sample(of(1.0), table)
    assert expected.shape == (1, 3)


def test_compare_puts_tables_beside_samplers(tmp_path):
    TABLE.save(tmp_path)
    found = sds.compare(model(), [str(tmp_path), "unipc", TABLE], nfe=[3, 4], num_samples=2, reference_samples=2)
    cells = {(cell.sampler, cell.budget): cell for cell in found.cells}
    assert cells[str(tmp_path), 3].nfe == 3
    assert cells["table", 3].error == cells[str(tmp_path), 3].error
    assert "no solver table for 4" in cells[str(tmp_path), 4].problem


def test_the_command_line_samples_with_a_folder(tmp_path, capsys):
    file = tmp_path / "net.py"
    file.write_text(
        "import sdesamplers as sds\n"
        "model = sds.FunctionModel(lambda x, t: 0.3 * x, sds.TrigFlow(), 'sample', (3,), name='linear')\n"
    )
    TABLE.save(tmp_path / "tables")
    words = ["sample", f"{file}:model", "--sampler", str(tmp_path / "tables"), "-n", "2", "--format", "safetensors"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--nfe", "3", "--out", str(tmp_path / "out"), "--quiet"])
    assert end.value.code == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["recipe"]["options"]["weights"] == [list(row) for row in WEIGHTS]
    with pytest.raises(SystemExit) as end:
        main([*words, "--nfe", "4", "--out", str(tmp_path / "four"), "--quiet"])
    assert end.value.code == 2
    assert "no solver table for 4 evaluations, only for 3" in capsys.readouterr().err
    assert not Path(tmp_path / "four").exists()


BAD_FACTS = {
    "a huge guidance scale": ({"guidance_scale": 10**400}, "guidance_scale"),
    "a guidance scale of text": ({"guidance_scale": "2"}, "guidance_scale"),
    "a flat signature": ({"signature": [1, 2]}, "signature"),
    "a signature of text": ({"signature": ["ab"]}, "signature"),
    "a teacher's name alone": ({"teacher": "quality"}, "teacher"),
    "errors as a list": ({"errors": [1]}, "errors"),
}


@pytest.mark.parametrize("case", BAD_FACTS)
def test_facts_of_the_wrong_type_are_refused_in_a_line(case, tmp_path):
    facts, name = BAD_FACTS[case]
    data = {**sds.SolverTable([1.5, 0.7], [[0.0, 0.7, -0.7]]).as_dict(), "facts": facts}
    file = tmp_path / "nfe-1.json"
    file.write_text(json.dumps(data))
    with pytest.raises(sds.UsageError, match=name) as error:
        sds.SolverTable.load(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_a_number_beyond_floats_is_refused_in_a_line(tmp_path):
    file = tmp_path / "nfe-1.json"
    text = json.dumps(sds.SolverTable([1.5, 0.7], [[0.0, 0.7, -0.7]]).as_dict())
    file.write_text(text.replace("1.5", "1" + "0" * 400, 1))
    with pytest.raises(sds.UsageError, match="not a solver table"):
        sds.SolverTable.load(file)


def test_a_file_is_no_folder_for_tables(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(sds.SdesamplersError) as error:
        sds.SolverTable([1.5, 0.7], [[0.0, 0.7, -0.7]]).save(tmp_path / "file" / "x.json")
    assert "\n" not in str(error.value)


def test_a_guided_model_has_the_tables_of_its_network():
    model = sds.load("fashion-mnist-labels")
    expected = sds.sample(model, "tuned", nfe=8, condition=3, guidance_scale=2.0).samples
    found = sds.sample(sds.Guided(model, 2.0), "tuned", nfe=8, condition=3).samples
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # one call for both predictions, or two
    weak = sds.Guided(model, 2.0, weak=sds.load("fashion-mnist-labels"))
    with pytest.raises(sds.UsageError, match="for 'fashion-mnist-labels' with other networks or other weights, and"):
        sds.sample(weak, "tuned", nfe=8, condition=3)


def test_a_network_in_several_attributes_counts_once():
    net = torch.nn.Linear(3, 3)
    plain, twice = (sds.FunctionModel(net, sds.TrigFlow(), "sample", (3,)) for _ in range(2))
    twice.other = [net, net]
    assert signature(twice) == signature(plain) != []


def test_a_path_of_tables_is_expanded_and_an_empty_one_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    TABLE.save(tmp_path / "tables")
    assert sds.SolverTable.load("~/tables", nfe=3) == TABLE
    for call in (lambda: sds.SolverTable.load(""), lambda: sds.tune(model(), 3, warm_start="")):
        with pytest.raises(sds.UsageError, match=r"the path of solver tables is empty; .* pass '\.'"):
            call()
