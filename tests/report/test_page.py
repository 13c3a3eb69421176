"""The page of a comparison: complete, self-contained, and safe from the names in it."""

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lanes import mostly_slow
from made_comparisons import HOSTILE, comparison
from PIL import Image

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.report import reading
from sdesamplers.report.svg import element
from sdesamplers.report.view import COSTS, QUALITIES, View

pytest.importorskip("matplotlib", reason="reports need matplotlib: pip install 'sdesamplers[report]'")

LIMIT = 5_000_000


class Page(HTMLParser):
    """A page's elements with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data


def page_of(made, tmp_path) -> Page:
    file = made.report(tmp_path / "page.html")
    assert file.stat().st_size < LIMIT
    return Page(file.read_text(encoding="utf-8"))


def problems(page: Page) -> list[str]:
    """What refers to something outside of the page, runs code of its own, or repeats an id."""
    found = []
    ids: set[str] = set()
    for tag, given in page.elements:
        found += [f"{tag} {name}" for name in given if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            if given.get(name, "#").startswith(("#", "data:image/", "data:,")) is False:
                found.append(f"{tag} {name}={given[name]}")
        if "id" in given:
            found += [f"id {given['id']} again"] if given["id"] in ids else []
            ids.add(given["id"])
    links = {given["href"][1:] for _, given in page.elements if given.get("href", "").startswith("#")}
    return found + [f"no {name}" for name in links - ids]


def test_names_cannot_break_out(tmp_path):
    made = comparison((1, 4, 4), (HOSTILE, "ddim", HOSTILE + "2"), name=HOSTILE, problem=HOSTILE)
    made.metrics = HOSTILE
    made.facts["environment"] = {"torch": HOSTILE}
    page = page_of(made, tmp_path)
    assert problems(page) == []
    assert len(page.scripts) == 2
    assert json.loads(page.scripts[0]) == json.loads(json.dumps(made.as_dict()))
    assert all(given.get("src", "data:image/png").startswith("data:image/png") for tag, given in page.elements)
    assert "\u202e" not in page.text
    assert HOSTILE.replace("\u202e", "\\u202e") in page.text


def test_the_code_draws_the_samples_again(tmp_path):
    start = torch.randn(3, 2, dtype=torch.float64)
    for words in ({"first_index": 5, "dtype": torch.float64}, {"start": start, "condition": torch.tensor([1.0, 2, 3])}):
        model = sds.FunctionModel(
            lambda x, t, c: 0.5 * x + c.reshape(-1, 1), sds.VP(), "epsilon", (2,), conditional=True, null_condition=0.0
        )
        made = sds.compare(model, "ddim eta=0.5", 3, num_samples=3, reference_samples=0, seed=4, **words)
        made.save(tmp_path)
        for each in (made, sds.Comparison.load(tmp_path)):
            ((_, [(_, code)]),) = reading.recipes(View(each))
            names = {"sds": sds, "torch": torch, "model": model, **words}
            exec(code, names)
            assert torch.equal(names["result"].samples.float(), made.samples["ddim eta=0.5", 3].float())


def test_intervals_are_those_of_the_comparison(tmp_path):
    made = sds.compare(sds.grid_mixture(sds.VP()), "ddim", 4, num_samples=6, reference_samples=4, repeats=3)
    view, cell = View(made), made.cells[0]
    assert view.interval(cell, QUALITIES["error"]) == tuple(cell.intervals["error"])
    assert view.interval(cell, COSTS["seconds"]) == (
        max(cell.intervals["seconds"][0], 0.0),
        cell.intervals["seconds"][1],
    )
    text = " ".join(page_of(made, tmp_path).text.split())
    assert "the mean of 3 repeats" in text
    assert "3 repeats with the seeds 0 to 2" in text
    assert "a bootstrap-t (4000 resamples, seed 0) over the 4 samples of the reference, of all 3 repeats" in text


def test_the_policy_allows_the_page_s_script_alone(tmp_path):
    page = page_of(comparison(), tmp_path)
    policy = next(given["content"] for tag, given in page.elements if given.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert "http" not in policy


def test_numbers_have_units_intervals_sizes_and_the_seed(tmp_path):
    page = page_of(comparison(), tmp_path)
    text = " ".join(page.text.split())
    for expected in (
        "6 for each sampler and number of evaluations, seed 7",
        "rk45 at tolerance 1e-5, 90 evaluations per sample, the first 4 samples",
        "of the ODE error by Student's t over the 4 samples of the reference;",
        "jackknife that leaves out each of 3 groups",
        "Fréchet distance 0.25 squared feature units between the reference set and 6 other real samples",
        "RMS difference in data units",
        "squared feature units",
        "0.75 [0.32, 1.18]",
        "0.25 [0.25, 0.25]",
        "seconds, 6 samples",
    ):
        assert expected in text, expected


KINDS = {
    "bare": {"reference": False, "scores": False},
    "one-cell": {"samplers": ("heun",), "budgets": (4,)},
    "vectors": {"shape": (5,)},
    "neither": {"shape": (2, 3)},
    "refused": {"shape": (3, 8, 6), "problem": "no such step"},
    "all-refused": {
        "shape": (1, 4, 4),
        "samplers": ("only",),
        "budgets": (4,),
        "problem": "none ran",
        "reference": False,
    },
    "many": {"samplers": tuple("abcdefghijkl"), "budgets": (4, 5, 6, 8)},
}


@pytest.mark.parametrize("kind", mostly_slow(KINDS, keep=("one-cell", "all-refused")))
def test_pages_of_all_kinds(kind, tmp_path):
    options = KINDS[kind]
    made = comparison(**options)
    page = page_of(made, tmp_path)
    assert problems(page) == []
    headings = re.findall(r"<h2[^>]*>([^<]*)", (tmp_path / "page.html").read_text())
    assert ("Work and precision" in headings) == any(c.error or c.frechet for c in made.cells)
    assert ("Error of each sample" in headings) == any(c.errors for c in made.cells)
    assert ("Samples from the same starts" in headings) == (len(made.cells[0:1]) > 0 and len(View(made).shape) == 3)
    assert ("Samples over the reference" in headings) == (len(View(made).shape) == 1)
    assert headings[-2:] == ["All numbers", "To repeat it"]
    rows = sum(given.get("data-value") == str(cell.budget) for _, given in page.elements for cell in made.cells[:1])
    assert rows >= len(View(made).samplers)
    if options.get("problem"):
        assert options["problem"] in page.text


@pytest.mark.slow
def test_many_points_are_shown_in_part(tmp_path):
    made = comparison((2,), tuple("abcdefghijkl"), (4, 5, 6, 8), count=3000)
    made.reference = torch.rand(3000, 2)
    page = page_of(made, tmp_path)  # checks the size
    assert "The first 104 of 3000 samples are drawn" in " ".join(page.text.split())


def test_pictures_are_those_of_the_samples(tmp_path):
    made = comparison((1, 4, 4), samplers=("heun",), budgets=(4,))
    page = page_of(made, tmp_path)
    found = [given for tag, given in page.elements if tag == "img" and given["alt"].startswith("sample 1 of heun")]
    content = base64.b64decode(found[0]["src"].partition(",")[2])
    (tmp_path / "one.png").write_bytes(content)
    pixels = np.asarray(Image.open(tmp_path / "one.png"))
    expected = (made.samples["heun", 4][1, 0].double() + 1) * 127.5
    assert pixels == pytest.approx(expected.clamp(0, 255).round().numpy(), abs=1)


def test_large_pictures_are_reduced_and_few(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PICTURE_BYTES", 40_000)
    made = comparison((3, 120, 200), count=9, budgets=(4,), reference=False, scores=False)
    made.trajectories.clear()
    page = page_of(made, tmp_path)
    images = [given["src"] for tag, given in page.elements if tag == "img"]
    assert all(uri.startswith("data:image/jpeg") for uri in images)
    assert 0 < sum(map(len, images)) < 40_000
    assert len(images) in (2, 4, 8, 12)  # each of two samplers has 1, 2, 4 or 6
    assert "Pictures of 200 x 120 pixels are reduced" in page.text


def test_the_code_draws_the_same_samples(tmp_path):
    model = sds.grid_mixture(sds.VP())
    made = sds.compare(model, ["heun"], 5, num_samples=4, seed=3, reference_samples=0, spacing="karras")
    [(_, [(budget, code)])] = reading.recipes(View(made))
    names = {"sds": sds, "model": model}
    exec(code, names)
    assert budget == 5
    assert torch.equal(names["result"].samples, made.samples["heun", 5])


def test_drawings_keep_nothing_that_clashes():
    content = b"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9pt"
        viewBox="0 0 9 9"><metadata>x</metadata><defs><style>*{}</style><path id="m1"/></defs>
        <g id="s2-c7"><use xlink:href="#m1" style="fill: #003793" clip-path="url(#c1)"/></g><g id="axes_1"/>
        <clipPath id="c1"/></svg>"""
    found = element(content, "p", 'a "label"', {7: "note </title>"})
    assert 'id="p-m1"' in found
    assert 'href="#p-m1"' in found
    assert 'clip-path="url(#p-c1)"' in found
    assert "axes_1" not in found
    assert "metadata" not in found
    assert "<style>" not in found
    assert "fill: var(--s0)" in found
    assert '<g data-sampler="2"><title>note &lt;/title&gt;</title>' in found
    assert 'aria-label="a &quot;label&quot;"' in found


def test_the_file_is_named_or_placed_in_a_folder(tmp_path):
    made = comparison(samplers=("heun",), budgets=(4,), scores=False)
    made.trajectories.clear()
    assert made.report(tmp_path) == tmp_path / "compare.html"
    assert made.report(str(tmp_path / "new" / "mine.htm")) == tmp_path / "new" / "mine.htm"


@pytest.mark.parametrize(
    ("arguments", "missing", "message"),
    [
        (["--report"], "jinja2", "reports need Jinja2"),
        (["--report"], "matplotlib.figure", "reports need matplotlib"),
        (["--figures", "svg"], "matplotlib.figure", "figures need matplotlib"),
        (["--figures", "svg,gif"], "", "the formats of figures are png, svg, pdf, not 'gif'"),
    ],
)
def test_the_command_refuses_before_anything_runs(arguments, missing, message, monkeypatch, tmp_path):
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("sdesamplers.cli.compare_command.load_model", lambda *a: pytest.fail("a model was loaded"))
    out = tmp_path / "out"
    run = CliRunner().invoke(cli, ["compare", "fashion-mnist", "--out", str(out), *arguments])
    assert message in str(run.exception)
    assert not out.exists()


def test_the_command_writes_the_page_and_figures(tmp_path):
    model = Path(__file__).parent / "own_model.py"
    command = ["compare", f"{model}:mixture", "--samplers", "heun", "--nfe", "4", "-n", "4", "--reference-samples", "3"]
    run = CliRunner().invoke(cli, [*command, "--report", "--figures", "svg", "--out", str(tmp_path), "--json"])
    assert run.exit_code == 0, run.exception
    files = json.loads(run.stdout)["files"]
    assert files["html"] == str(tmp_path / "compare.html")
    assert {"work-precision-error-evaluations.svg", "trajectories.svg", "grids.svg"} <= set(files)
    assert all(Path(file).is_file() for file in files.values())
    assert "Trajectories" in (tmp_path / "compare.html").read_text()


def test_the_solver_tables_of_the_model_are_listed(tmp_path):
    made = comparison()
    made.facts["model"] = {"solver_tables": [{"guidance_scale": s, "nfe": [5, 8]} for s in (1.0, 2.0, 4.5)]}
    text = " ".join(page_of(made, tmp_path).text.split())
    assert "of the model, for 5, 8 (unguided, guidance 2, 4.5) evaluations" in text
    assert "Solver tables" not in page_of(comparison(), tmp_path).text


def test_own_metrics_have_figures_a_sortable_column_and_intervals(tmp_path):
    made = sds.compare(
        sds.grid_mixture(sds.VP()), ["ddim", "heun"], [4, 6], num_samples=6, reference_samples=4,
        metrics={"radius": lambda samples: samples.norm(dim=1), "spread": lambda samples: samples.std()},
    )  # fmt: skip
    page = page_of(made, tmp_path)
    text = " ".join(page.text.split())
    for name in ("radius", "spread"):
        assert f"{name} against model evaluations per sample" in text
        assert f"{name} against seconds for all samples" in text
    headings = re.findall(
        r'<th scope="col" aria-sort="none" data-sort="number">(\w+)<', (tmp_path / "page.html").read_text()
    )
    assert {"radius", "spread"} <= set(headings)
    low, high = made.cells[0].intervals["radius"]
    assert f"{made.cells[0].metrics['radius']:.3g} [{low:.3g}, {high:.3g}]" in text
    assert "of radius by a bootstrap-t (4000 resamples, seed 0) over the 6 samples" in text
    assert "radius, spread: functions of the samples" in text
    assert not any(value["best"] for row in reading.table(View(made)) for value in row["values"][-2:])
    assert made._repr_html_().count(">radius</th>") == 1
