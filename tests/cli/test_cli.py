"""The command line: what it prints and writes, its exit codes, and every bad input a person can type."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import UNet2DConditionModel
from lanes import mostly_slow
from PIL import Image
from safetensors import safe_open
from tiny_models import WEIGHTS, save_pipeline, tiny_unet

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.registry.registry import default_registry, use_registry


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of the test's own, no registry files, and no Hub."""
    monkeypatch.delenv("SDESAMPLERS_REGISTRY", raising=False)
    monkeypatch.delenv("SDESAMPLERS_DEBUG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield
    monkeypatch.undo()
    use_registry(None)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process."""

    def run_main(*words: str | Path) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        written = capsys.readouterr()
        # the tiny pipeline is not trained, so its samples are far off and the command line says so
        told = [line for line in written.err.splitlines(keepends=True) if "lie far outside the data" not in line]
        return Ran(int(caught.value.code or 0), written.out, "".join(told))

    return run_main


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline."""
    return save_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional one."""
    return save_pipeline(tmp_path_factory.mktemp("models") / "labelled", unet=tiny_unet(num_class_embeds=5))


def leftovers() -> list[str]:
    """What a command left in the working folder."""
    return sorted(p.as_posix() for p in Path().rglob("*"))


def check_refused(ran: Ran, code: int, *parts: str) -> None:
    """One line on standard error, the exit code, nothing on standard output and nothing on disk."""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    assert "Traceback" not in ran.err
    assert "a bug in sdesamplers" not in ran.err
    assert ran.out == ""
    for part in parts:
        assert part in ran.err
    assert ran.code == code


# Listings


def test_list(run: Any) -> None:
    text = run("list")
    assert text.code == 0
    for word in ("Samplers", "euler-maruyama", "rk45", "Spacings", "karras", "Noise sources", "Recipes", "edm"):
        assert word in text.out
    data = json.loads(run("list", "--json").out)
    samplers = {s["name"]: s for s in data["samplers"]}
    assert samplers["heun"]["order"] == 2
    assert samplers["heun"]["evaluations"] == 2
    assert samplers["rk45"]["adaptive"]
    assert samplers["ddpm"]["stochastic"]
    assert samplers["ddim"]["options"]["eta"] == {"type": "float", "default": 0.0}
    assert samplers["ddim"]["plugin"] == "sdesamplers:ddim"
    assert {"name", "summary", "plugin"} <= set(data["spacings"][0])
    assert data["recipes"]["edm"]["sampler"] == "heun"
    assert data["aliases"]["DDIM"] == "ddim"


@pytest.mark.parametrize(
    "name", ["ddim", "rk45", "edm", "DDIM", "EulerDiscreteScheduler", "karras", "sdesamplers:heun"]
)
def test_info(run: Any, name: str) -> None:
    text = run("info", name)
    assert (text.code, text.err) == (0, "")
    data = json.loads(run("info", name, "--json").out)
    assert data["doc"].strip().splitlines()[0] in text.out
    assert data["plugin"].startswith("sdesamplers")
    assert data["reference"] is not None


@pytest.mark.parametrize("columns", ["80", "130"])
def test_list_gives_a_line_to_each_entry(run: Any, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = run("list").out.splitlines()
    assert all(len(line) <= int(columns) for line in lines[:-1])
    registry = default_registry()
    for name in [*registry.samplers, *registry.spacings, *registry.noises, *registry.catalogue.recipes]:
        assert sum(line.startswith(f"{name} ") for line in lines) >= 1, name
    entries = [*registry.samplers, *registry.spacings, *registry.noises, *registry.catalogue.recipes]
    assert len(lines) < len(entries) + 60


def test_list_of_some(run: Any) -> None:
    text = run("list", "EULER").out
    assert "euler-ancestral" in text
    assert "heun" not in text
    assert "Spacings" not in text
    data = json.loads(run("list", "--family", "exponential", "--json").out)
    assert {s["plugin"] for s in data["samplers"]} == {"sdesamplers:exponential"}
    assert data["recipes"] == {}


def test_info_begins_with_what_runs(run: Any) -> None:
    def printed(name: str) -> str:
        return run("info", name).out

    assert printed("DPM++ 2M SDE Karras").splitlines()[0] == "runs dpmpp-2m-sde on karras, brownian noise"
    assert printed("edm").splitlines()[0] == "runs heun on karras, 18 steps"
    assert printed("ode-exact").splitlines()[0] == "runs rk45 with adaptive steps"
    text = printed("edm-stochastic")
    assert "s_churn = 40.0" in text
    assert "2 (with default options)" in text
    assert "with default options" not in printed("churn")
    assert "marginals" in printed("ddim")


def test_info_of_a_recipe_says_what_it_sets(run: Any) -> None:
    data = json.loads(run("info", "ode-exact", "--json").out)
    assert data["sampler"] == "rk45"
    assert data["coordinates"] == "angle"
    assert data["recipe options"]["rtol"] == 1e-5


def test_models(run: Any) -> None:
    assert "fashion-mnist" in run("models").out
    data = json.loads(run("models", "--json").out)
    assert data["fashion-mnist"]["path"] == "assets/fashion-mnist"
    assert all("base" not in entry for entry in data.values())


def test_doctor(run: Any) -> None:
    data = json.loads(run("doctor", "--json").out)
    findings = {f["what"]: f for f in data}
    assert {"sdesamplers", "torch", "diffusers", "device", "Hub cache", "embedded model", "plugin ddim"} <= set(
        findings
    )
    assert findings["sdesamplers"]["state"].startswith(sds.__version__)
    assert findings["embedded model"]["good"]
    text = run("doctor")
    assert text.code == 0
    assert "embedded model" in text.out


def test_doctor_names_what_is_broken(run: Any) -> None:
    Path("r.yaml").write_text("plugins: [no_such_plugin]\n")
    ran = run("--registry", "r.yaml", "doctor", "--json")
    broken = [f for f in json.loads(ran.out) if not f["good"]]
    assert [f["what"] for f in broken] == ["plugin no_such_plugin"]
    assert "ModuleNotFoundError" in broken[0]["state"]
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    listing = run("--registry", "r.yaml", "list")
    assert listing.code == 0
    assert "broken plugin" in listing.err


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("--version",), ("sample", "--help"), ("compare", "-h")])
def test_help(run: Any, words: tuple[str, ...]) -> None:
    ran = run(*words)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out


def test_no_command_shows_the_help(run: Any) -> None:
    ran = run()
    assert ran.code == 2
    assert "Usage" in ran.out + ran.err


# Sampling


def test_sample_writes_what_was_asked_for(run: Any, pipeline: Path) -> None:
    words = ("--sampler", "DDIM", "--steps", "2", "-n", "5", "--seed", "7", "-o", "eta=0.5", "--batch-size", "2")
    ran = run("sample", pipeline, *words, "--format", "grid,png,safetensors", "--out", "a/b", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert "5 samples" in ran.out
    pictures = [f"sample-{k:06d}.png" for k in range(5)]
    made = ["grid.png", *pictures, "samples.safetensors", "manifest.json", ".job"]
    assert sorted(p.name for p in Path("a/b").iterdir()) == sorted(made)
    with Image.open("a/b/sample-000000.png") as image:
        assert (image.size, image.mode) == ((8, 8), "L")
    with safe_open("a/b/samples.safetensors", "pt") as file:
        facts, samples, indices = file.metadata(), file.get_tensor("samples"), file.get_tensor("indices")
    facts = json.loads(facts["sdesamplers"])
    assert (facts["seed"], facts["model"]["name"], facts["environment"]["sdesamplers"]) == (
        7,
        str(pipeline),
        sds.__version__,
    )
    recipe = facts["recipe"]
    assert (recipe["sampler"], recipe["steps"], recipe["options"]) == ("ddim", 2, {"eta": 0.5})
    assert indices.tolist() == list(range(5))
    expected = sds.sample(sds.load(pipeline), "ddim", steps=2, num_samples=5, seed=7, eta=0.5).samples
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-4)


def test_sample_as_json(run: Any, pipeline: Path) -> None:
    ran = run("sample", pipeline, "--sampler", "edm", "--nfe", "7", "-n", "1", "--json")
    data = json.loads(ran.out)
    assert (data["model"], data["revision"], data["nfe"]) == (str(pipeline), None, 7)
    assert data["recipe"]["spacing"] == "karras"
    assert data["files"] == [str(Path("out") / name) for name in ("grid.png", "manifest.json")]


@pytest.mark.parametrize(
    "words",
    [
        ("--sampler", "rk45", "-o", "rtol=1e-2", "-o", "atol=1e-2"),
        ("--times", "999,500.5,0"),
        ("--sigmas", "80,1,0", "--sampler", "euler"),
        ("--steps", "2", "--spacing", "karras", "--spacing-option", "rho=5", "--coordinates", "ve", "--final", "min"),
        ("--steps", "2", "--sampler", "em", "--noise", "brownian"),
        ("--steps", "2", "--dtype", "bf16", "--size", "12"),
    ],
    ids=" ".join,
)
def test_ways_to_sample(run: Any, pipeline: Path, words: tuple[str, ...]) -> None:
    ran = run("sample", pipeline, "-n", "1", *words)
    assert ran.code == 0, ran.err
    assert Path("out/grid.png").is_file()


def test_sample_with_labels(run: Any, labelled: Path) -> None:
    assert run("sample", labelled, "-n", "2", "--steps", "2", "--condition", "1,4").code == 0
    check_refused(run("sample", labelled, "-n", "2", "--steps", "2", "--condition", "9", "--out", "x"), 2, "0 to 4")
    check_refused(run("sample", labelled, "-n", "2", "--steps", "2", "--out", "x"), 2, "class-conditional")
    assert not Path("x").exists()


def test_a_second_run_replaces_nothing_unless_told_to(run: Any, pipeline: Path) -> None:
    words = ("sample", pipeline, "--steps", "2", "-n", "1", "--quiet")
    assert run(*words).code == 0
    first = Path("out/grid.png").read_bytes()
    check_refused(run(*words), 2, "out already holds this job, 1 of 1 shards done: continue with --resume")
    check_refused(run(*words, "--seed", "1"), 2, "seed is 0 there and 1 here")
    assert Path("out/grid.png").read_bytes() == first
    Path("out/mine.txt").write_text("not the job's")
    assert run(*words, "--seed", "1", "--overwrite", "--format", "png").code == 0
    there = sorted(path.name for path in Path("out").iterdir())
    assert there == [".job", "manifest.json", "mine.txt", "sample-000000.png"]


def test_options_are_for_the_recipes_own_spacing(run: Any, pipeline: Path) -> None:
    words = ("--sampler", "edm", "--steps", "2", "-n", "1", "--spacing-option", "rho=5", "--json")
    recipe = json.loads(run("sample", pipeline, *words).out)["recipe"]
    assert (recipe["spacing"], recipe["spacing_options"]) == ("karras", {"rho": 5.0})


def test_statistics_are_quiet_where_asked(run: Any, pipeline: Path) -> None:
    words = ("statistics", pipeline, "--samples", "2", "--nodes", "8")
    ran = run(*words, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["file"] == "statistics.safetensors"
    assert run(*words, "--quiet").err == ""
    assert run(*words).err == ""


# Comparing


def test_a_comparison_as_json(run: Any, pipeline: Path) -> None:
    words = ("--samplers", "ddim", "--nfe", "3", "-n", "2", "--reference-samples", "0", "--json", "--out", "d")
    ran = run("compare", pipeline, *words)
    assert (ran.code, ran.err) == (0, "")
    (cell,) = json.loads(ran.out)["cells"]
    assert (cell["sampler"], cell["budget"], cell["nfe"], cell["error"]) == ("ddim", 3, 3, None)
    assert sorted(p.name for p in Path("d").iterdir()) == [".cells", "compare.csv", "compare.json", "compare.png"]


@pytest.mark.slow
def test_compare(run: Any, pipeline: Path) -> None:
    words = ("--samplers", "euler,ddim,ddpm,heun", "--nfe", "1,3,5", "-n", "4", "--reference-samples", "1")
    ran = run("compare", pipeline, *words, "--out", "c")
    assert ran.code == 0, ran.err
    written = ["compare.csv", "compare.json", "compare.png"]
    assert sorted(p.name for p in Path("c").iterdir()) == [".cells", *written]
    assert sorted(line.strip() for line in ran.out.splitlines()[-3:]) == [f"c/{name}" for name in written]
    with Image.open("c/compare.png") as image:
        assert min(image.size) > 100
    data = json.loads(Path("c/compare.json").read_text())
    assert (data["groups"][0]["model_name"], data["num_samples"], data["seed"]) == (str(pipeline), 4, 0)
    cells = {(c["sampler"], c["budget"]): c for c in data["cells"]}
    assert len(cells) == 12
    assert [cells["heun", b]["nfe"] for b in (1, 3, 5)] == [1, 3, 5]
    assert cells["ddim", 5]["error"] > 0
    assert cells["ddpm", 5]["error"] is None
    rows = list(csv.DictReader(Path("c/compare.csv").read_text().splitlines()))
    assert [(r["sampler"], int(r["budget"])) for r in rows] == list(cells)
    few = ("-n", "2", "--reference-samples", "0")
    as_json = run("compare", pipeline, "--samplers", "ddim", "--nfe", "3", *few, "--json", "--out", "d")
    assert json.loads(as_json.out)["cells"][0]["sampler"] == "ddim"
    assert as_json.err == ""


def test_compare_refuses_before_it_runs(run: Any, pipeline: Path) -> None:
    for words, part in [
        (("--samplers", "euler,hein"), "'heun'"),
        (("--samplers", ""), "unknown sampler"),
        (("--nfe", "5,x"), "comma-separated"),
        (("--nfe", "5,0"), "1 or more"),
        (("--nfe", "5,2.5"), "comma-separated"),
        (("--spacing", "karas"), "'karras'"),
        (("--num-samples", "0"), "num_samples"),
        (("--batch-size", "0"), "batch_size"),
        (("--samplers", "euler,ddim", "-o", "eta=0.5"), "euler lacks"),
        (("--seed", "-1"), "seed"),
        (("--reference-samples", "-1"), "reference"),
    ]:
        check_refused(run("compare", pipeline, "-n", "2", "--nfe", "2", "--quiet", *words), 2, part)
    check_refused(run("compare", pipeline, "--metrics", "nowhere"), 1, "metrics")
    assert leftovers() == []


# What a person can mistype

STEPS = ("--steps", "2")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("smaple",), "'sample'"),
        (("info",), "NAME"),
        (("info", "hein"), "'heun'"),
        (("info", ""), "unknown sampler"),
        (("sample",), "MODEL"),
        (("list", "--jsn"), "--json"),
        (("list", "extra"), "extra"),
        (("list", "--family", "odient"), "'odeint'"),
        (("info", "DPM++ 2M Karas"), "did you mean 'DPM++ 2M Karras'?"),
        (("info", "dpm++ 2m sde karras"), "did you mean 'DPM++ 2M SDE Karras'?"),
        (("info", "odeint:dopri9"), "unknown method 'dopri9' of odeint; did you mean 'dopri8'"),
        (("check", "odient:dopri5"), "did you mean 'odeint:dopri5'"),
        (("--plugin", "nowhere.py", "list"), "plugin nowhere.py: no such file"),
        (("--registry", "nowhere.yaml", "list"), "nowhere.yaml: cannot be read"),
        (("--registry",), "--registry"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_commands_mistyped(run: Any, words: tuple[str, ...], part: str) -> None:
    check_refused(run(*words), 2, part)


KEPT_MISTAKES = (
    *("--stepz 2", "--steps 2 --sampler hein", "--steps 2 --format gird", "--steps 0", "--steps 2.5", "--nfe 0"),
    *("--steps 2 --nfe 3", "--sampler heun", "--times 10,900", "--times 2000,10", "--times 900,x", "--sigmas 1,2"),
    *(
        "--steps 2 --sampler ddim -o eta=high",
        "--steps 2 --sampler ddim -o etta=1",
        "--steps 2 --sampler ddim -o eta=50",
    ),
    *("--sampler rk45 -o rtol=-1", "--steps 2 --spacing karras --spacing-option roh=7", "--steps 2 --seed -1"),
    *("--steps 2 --batch-size 0", "--steps 2 --size 7", "--steps 2 --device toaster", "--steps 2 --guidance-scale 2"),
)
"""One or two of each kind of mistake, which are tried by default."""


@pytest.mark.parametrize(
    ("words", "part"),
    mostly_slow(
        [
            (("--stepz", "2"), "--steps"),
            ((*STEPS, "--sampler", "hein"), "'heun'"),
            ((*STEPS, "--sampler", ""), "unknown sampler"),
            ((*STEPS, "--spacing", "karas"), "'karras'"),
            ((*STEPS, "--coordinates", "vee"), "'ve'"),
            ((*STEPS, "--noise", "pink"), "'brownian'"),
            ((*STEPS, "--final", "one"), "'zero'"),
            ((*STEPS, "--format", "gird"), "'grid'"),
            ((*STEPS, "--format", "grid,jpg"), "png"),
            ((*STEPS, "--format", ""), "format"),
            (("--steps", "0"), "1 or more"),
            (("--steps", "-1"), "1 or more"),
            (("--steps", "2.5"), "not a valid integer"),
            (("--steps", "x"), "not a valid integer"),
            (("--nfe", "0"), "1 or more"),
            (("--nfe", "1.5"), "not a valid integer"),
            (("--steps", "2", "--nfe", "3"), "not steps and nfe"),
            (("--sampler", "heun"), "needs steps"),
            (("--steps", "2", "--times", "900,10"), "not steps and times"),
            (("--times", "900,10", "--spacing", "karras"), "contradict"),
            (("--times", "10,900"), "fall"),
            (("--times", "900,900"), "fall"),
            (("--times", "900"), "two or more"),
            (("--times", "2000,10"), "between 0 and 999"),
            (("--times", "900,x"), "comma-separated"),
            (("--times", "nan,1"), "finite"),
            (("--times", "0"), "two or more"),
            (("--sigmas", "1e9,1"), "largest"),
            (("--sigmas", "1,-1"), "between 0"),
            (("--sigmas", "1,2"), "fall"),
            (("--sigmas", ""), "comma-separated"),
            ((*STEPS, "--sampler", "ddim", "-o", "eta=high"), "float"),
            ((*STEPS, "--sampler", "ddim", "-o", "eta=nan"), "must be a number, not NaN"),
            ((*STEPS, "--sampler", "ddim", "-o", "eta="), "float"),
            ((*STEPS, "--sampler", "ddim", "-o", "eta"), "KEY=VALUE"),
            ((*STEPS, "--sampler", "ddim", "-o", "etta=1"), "'eta'"),
            ((*STEPS, "--sampler", "heun", "-o", "eta=1"), "sampler 'heun' has no option 'eta' (it has no options)"),
            ((*STEPS, "--sampler", "ddim", "-o", "eta=-1"), "eta must"),
            ((*STEPS, "--sampler", "ddim", "-o", "eta=50"), "eta must"),
            ((*STEPS, "--sampler", "em", "-o", "eta=-0.1"), "eta must"),
            ((*STEPS, "--sampler", "ddpm", "-o", "variance=big"), "posterior"),
            (("--sampler", "rk45", "-o", "rtol=-1"), "rtol"),
            (("--sampler", "rk45", "-o", "max_nfe=1.5"), "int"),
            ((*STEPS, "--sampler", "rk45", "-o", "rtol=0.1"), "not both"),
            ((*STEPS, "--spacing", "karras", "--spacing-option", "rho=x"), "float"),
            ((*STEPS, "--spacing", "karras", "--spacing-option", "roh=7"), "'rho'"),
            ((*STEPS, "--spacing", "karras", "--spacing-option", "rho=0"), "rho"),
            ((*STEPS, "--sampler", "euler", "--spacing-option", "rho=7"), "--spacing-option requires --spacing"),
            ((*STEPS, "--sampler", "edm", "--spacing-option", "roh=7"), "spacing 'karras' has no option 'roh'"),
            ((*STEPS, "--seed", "-1"), "seed"),
            ((*STEPS, "--seed", "1" * 30), "seed"),
            ((*STEPS, "--seed", "x"), "not a valid integer"),
            ((*STEPS, "--num-samples", "0"), "num_samples"),
            ((*STEPS, "-n", "-3"), "num_samples"),
            ((*STEPS, "--batch-size", "0"), "batch_size"),
            ((*STEPS, "--size", "7"), "multiples of 2"),
            ((*STEPS, "--size", "0"), "multiples of 2"),
            ((*STEPS, "--dtype", "float23"), "dtype"),
            ((*STEPS, "--device", "toaster"), "device"),
            ((*STEPS, "--mixed-precision", "fp8"), "mixed-precision"),
            ((*STEPS, "--condition", "1"), "takes no condition"),
            ((*STEPS, "--condition", "x"), "comma-separated"),
            ((*STEPS, "--guidance-scale", "2"), "guidance_scale"),
            ((*STEPS, "--revision", "main"), "local folder"),
        ],
        keep=lambda words, part: " ".join(words) in KEPT_MISTAKES,
    ),
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_options_mistyped(run: Any, pipeline: Path, words: tuple[str, ...], part: str) -> None:
    check_refused(run("sample", pipeline, "-n", "2", *words, "--quiet"), 2, part)
    assert leftovers() == []


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "no weights", "bad config", "other", "subfolder"])
def test_models_that_cannot_be_loaded(run: Any, pipeline: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "model"
    code, words = 1, ()
    if fault == "missing":
        code = 2
    elif fault == "empty":
        folder.mkdir()
    elif fault == "other":
        blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        small = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
        UNet2DConditionModel(**small, **blocks).save_pretrained(folder)
    else:
        save_pipeline(folder)
    file = folder / "unet" / WEIGHTS
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:9000])
    elif fault == "no weights":
        file.unlink()
    elif fault == "bad config":
        (folder / "unet" / "config.json").write_text("{")
    elif fault == "subfolder":
        words = ("--subfolder", "nowhere")
    check_refused(run("sample", folder, *STEPS, *words), code, str(folder))
    assert leftovers() == []


def test_models_that_nobody_knows(run: Any) -> None:
    check_refused(run("sample", "fashion-mnits", *STEPS), 2, "'fashion-mnist'")
    check_refused(run("sample", "owner/absent", *STEPS), 1, "owner/absent@main")
    check_refused(run("compare", "fashion-mnits"), 2, "'fashion-mnist'")


@pytest.mark.parametrize("command", ["list", "models", "sample", "info"])
def test_a_bad_registry(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("recipes:\n  mine:\n    sampler: ddim\n    stepz: 3\n")
    words = {"sample": ("x", "--steps", "2"), "info": ("ddim",)}.get(command, ())
    expected = f"{file}:4: recipes.mine.stepz: unknown key"
    check_refused(run("--registry", file, command, *words), 2, expected)
    monkeypatch.setenv("SDESAMPLERS_REGISTRY", str(file))
    monkeypatch.setattr("sdesamplers.registry.registry._default", None)
    check_refused(run(command, *words), 2, expected)


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_cannot_be(run: Any, pipeline: Path, out: str) -> None:
    Path("file").write_text("here")
    check_refused(run("sample", pipeline, *STEPS, "-n", "1", "--out", out, "--quiet"), 2, "--out")
    check_refused(run("compare", pipeline, "--nfe", "2", "-n", "1", "--out", out, "--quiet"), 2, "--out")
    assert leftovers() == ["file"]
    assert Path("file").read_text() == "here"


def test_a_target_that_cannot_be_replaced_leaves_nothing_half_written(run: Any, pipeline: Path) -> None:
    Path("out/grid.png").mkdir(parents=True)
    check_refused(run("sample", pipeline, *STEPS, "-n", "1", "--quiet"), 2, "out holds grid.png")
    assert not [path for path in leftovers() if Path(path).name.startswith(".grid")]


def test_a_writer_that_fails_leaves_nothing_half_written(
    run: Any, pipeline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace = os.replace

    def full(source: Any, target: Any, **where: Any) -> None:
        if Path(target).name == "grid.png":
            raise OSError(28, "No space left on device")
        replace(source, target, **where)

    monkeypatch.setattr(os, "replace", full)
    words = ("sample", pipeline, *STEPS, "-n", "1", "--quiet")
    check_refused(run(*words), 1, "No space left on device")
    assert [path.name for path in Path("out").iterdir()] == [".job"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run(*words, "--resume").code == 0
    assert Path("out/grid.png").stat().st_size > len(b"half")


def test_a_bug_is_one_line_too(run: Any, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("sdesamplers.sampling.prepared.drive", broken)
    ran = run("sample", pipeline, *STEPS, "-n", "1", "--quiet")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "RuntimeError: first second" in ran.err
    assert leftovers() == []
    monkeypatch.setenv("SDESAMPLERS_DEBUG", "1")
    with pytest.raises(RuntimeError):
        main(["sample", str(pipeline), *STEPS, "-n", "1", "--quiet"])


def test_stopping(run: Any, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sdesamplers.sampling.prepared.drive", stopped)
    ran = run("sample", pipeline, *STEPS, "-n", "1", "--quiet")
    assert (ran.code, ran.err.strip()) == (1, "error: stopped")
    assert leftovers() == []


# Processes of their own


def process(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python."""
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)


def test_importing_the_package_alone_is_light() -> None:
    done = process("import sys, sdesamplers; print(sorted({'torch', 'diffusers', 'scipy', 'rich'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
def test_import_is_light() -> None:
    code = """
import sys, sdesamplers
heavy = {"diffusers", "accelerate", "matplotlib", "huggingface_hub", "scipy", "rich", "jsonschema", "transformers"}
print(sorted(heavy & set(sys.modules)))
import sdesamplers.sampling
sdesamplers.samplers()
print(sorted({"diffusers", "accelerate", "matplotlib"} & set(sys.modules)))
"""
    done = process(code)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


@pytest.mark.slow
def test_the_installed_command_lists_without_heavy_imports() -> None:
    code = """
import sys
from sdesamplers.cli import main
try:
    main(["list"])
finally:
    print(sorted({"diffusers", "accelerate", "matplotlib"} & set(sys.modules)))
"""
    done = process(code)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"
    assert "euler-maruyama" in done.stdout


@pytest.mark.slow
def test_errors_of_a_real_process() -> None:
    done = process("from sdesamplers.cli import main; main()", "info", "hein")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown sampler 'hein'; did you mean 'heun'")
    assert done.stderr.count("\n") == 1
