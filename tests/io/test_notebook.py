"""What notebooks show: tables and pictures with escaped text, and bars without widgets."""

from __future__ import annotations

import base64
import io
import re
import sys
import types
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdesamplers as sds
from sdesamplers.io import notebook, terminal
from sdesamplers.report.inline import inline, points

EVIL = "<script>alert(1)</script>\x1b[2J"


class Checked(HTMLParser):
    """Collects tags and text; every tag must be closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def pictures(text: str) -> list[np.ndarray]:
    """The inline pictures."""
    found = re.findall(r"src='data:image/png;base64,([^']+)'", text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")) for data in found]


@pytest.fixture(scope="module")
def result() -> sds.Result:
    return sds.sample(sds.grid_mixture(sds.VP()), "ddim", steps=3, num_samples=20, eta=0.5)


def test_a_result_of_images_shows_them() -> None:
    shown = sds.sample("fashion-mnist", "ddim", steps=2, num_samples=20)
    text = shown._repr_html_()
    (picture,) = pictures(text)
    # 16 of the 20 samples, in rows of 8; 28 pixels are magnified by 2, with gaps of 2
    assert picture.shape == (2 * 58 + 2, 8 * 58 + 2)
    first = np.asarray(shown.images[0])
    np.testing.assert_array_equal(picture[2:58:2, 2:58:2], first)
    assert len(text) < 100_000
    found = Checked(text).text
    assert "fashion-mnist" in found
    assert "2 per sample" in found


def test_a_result_of_vectors_shows_them_as_points(result: sds.Result) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    (picture,) = pictures(result._repr_html_())
    assert (picture < 200).sum() > 100  # something is drawn
    assert "ddim" in Checked(result._repr_html_()).text
    (axes,) = points(result.samples).axes
    np.testing.assert_array_equal(np.stack(axes.lines[0].get_data(), 1), result.samples.numpy())
    assert axes.get_title() == "20 samples"


def test_vectors_of_more_dimensions_are_shown_by_their_components_and_that_is_stated() -> None:
    """Samples on a plane in five dimensions: distances in the figure are those of the samples."""
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    generator = torch.Generator().manual_seed(1)
    plane = torch.linalg.qr(torch.randn(5, 2, generator=generator, dtype=torch.float64))[0]
    samples = torch.randn(30, 2, generator=generator, dtype=torch.float64) @ plane.T + 3
    (axes,) = points(samples).axes
    drawn = torch.from_numpy(np.stack(axes.lines[0].get_data(), 1))
    torch.testing.assert_close(torch.cdist(drawn, drawn), torch.cdist(samples, samples), rtol=0, atol=1e-6)
    stated = " ".join(axes.get_title().split())
    assert stated == "30 samples first two principal components of these samples, 100% of the variance"
    (axes,) = points(samples[:2]).axes  # too few for components
    assert axes.get_title() == "2 samples\nfirst two of 5 coordinates"
    np.testing.assert_array_equal(np.stack(axes.lines[0].get_data(), 1), samples[:2, :2].numpy())


def test_samples_that_are_not_finite_are_left_out_and_counted() -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    samples = torch.eye(4, 2)
    samples[0, 1] = torch.nan
    (axes,) = points(samples).axes
    assert axes.get_title() == "3 of 4 samples"
    assert inline(lambda: points(samples[:1])) == ""
    (axes,) = points(torch.arange(10.0)[:, None]).axes
    assert sum(bar.get_height() for bar in axes.patches) == 10


def test_without_matplotlib_the_tables_are_shown(result: sds.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert pictures(result._repr_html_()) == []
    assert "20, 2" in Checked(result._repr_html_()).text


@pytest.mark.filterwarnings("ignore:heun with 4 steps hardly")
def test_a_likelihood_shows_its_numbers_and_their_histogram() -> None:
    model = sds.GaussianModel([0.0, 1.0], 0.25, sds.VP())
    found = sds.log_likelihood(model, torch.zeros(9, 2), "heun", steps=4, divergence="exact")
    text = found._repr_html_()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    assert f"{found.nats.mean():.4g}" in cells
    assert f"{found.bits_per_dim.max():.4g}" in cells
    assert "exact" in cells
    assert "log p of 9 samples" in Checked(text).text
    assert "log p of 1 sample" in sds.log_likelihood(model, torch.zeros(1, 2), "heun", steps=4)._repr_html_()
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    assert len(pictures(text)) == 1


def test_a_tuning_shows_the_errors_of_its_tables_and_their_grids() -> None:
    model = sds.GaussianModel([0.0, 1.0], 0.25, sds.VP())
    tuning = sds.tune(model, 2, starts=8, trials=1, teacher_nfe=20)
    errors = tuning.tables[2].facts["errors"]
    errors["fixed"]["setting"] = EVIL
    text = tuning._repr_html_()
    assert f"{errors['rms']:.4g}" in text
    assert f"{errors['fixed']['median']:.4g}" in text
    assert "<script" not in text
    assert "1 number of evaluations" in Checked(text).text
    assert "0 numbers" in Checked(sds.Tuning()._repr_html_()).text
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    assert len(pictures(text)) == 1


def test_latents_are_not_decoded_for_display(result: sds.Result) -> None:
    calls = []

    def decoder(samples: torch.Tensor) -> torch.Tensor:
        calls.append(len(samples))
        return torch.zeros(len(samples), 3, 8, 8)

    latent = sds.Result(**{**vars(result), "decoder": decoder, "decoded_range": (-1.0, 1.0)})
    assert pictures(latent._repr_html_()) == []
    assert calls == []
    assert latent.decoded.shape[1:] == (3, 8, 8)
    assert len(pictures(latent._repr_html_())) == 1
    assert calls == [20]


def test_large_pictures_are_reduced(result: sds.Result) -> None:
    large = {**vars(result), "samples": torch.rand(4, 3, 512, 256), "data_range": (0.0, 1.0)}
    (picture,) = pictures(sds.Result(**large)._repr_html_())
    assert picture.shape == (128 + 4, 4 * (64 + 2) + 2)


def test_recipes_samplers_models_and_listings(result: sds.Result) -> None:
    assert "eta=0.5" in Checked(result.recipe._repr_html_()).text
    sampler = Checked(sds.samplers()["rk45"]._repr_html_())
    assert "Dormand" in sampler.text
    assert "max_nfe" in sampler.text
    assert "details" in sampler.tags
    assert "DiscreteVP" in Checked(sds.load("fashion-mnist")._repr_html_()).text
    for listing in (sds.samplers(), sds.spacings(), sds.noises(), sds.sdes()):
        assert isinstance(listing, dict)
        found = Checked(listing._repr_html_())  # type: ignore[attr-defined]
        assert all(name in found.text for name in listing)
        assert found.tags.count("tr") == len(listing) + 1


def test_a_comparison_shows_its_table_and_picture() -> None:
    made = sds.compare("fashion-mnist", ["ddim"], [2], num_samples=2, reference_samples=0, scorer=None)
    text = made._repr_html_()
    assert len(pictures(text)) == 1
    found = Checked(text).text
    assert "ddim" in found
    assert "ODE error" not in found  # no cell has one


def test_all_text_is_escaped(result: sds.Result) -> None:
    evil = sds.Result(**{**vars(result), "model_name": EVIL})
    recipe = sds.Recipe(**{**vars(result.recipe), "sampler": EVIL, "options": {EVIL: EVIL}})
    cell = sds.comparison.result.Cell(EVIL, 3, problem=EVIL)
    compared = sds.Comparison(EVIL, 1, 0, [cell], {})
    model = sds.grid_mixture(sds.VP())
    model.name = EVIL

    @sds.spacing("evil", reference=EVIL)
    def spacing(span: Any, count: int, *, text: str = EVIL) -> Any:
        """<script>alert(2)</script>"""

    for item in (evil, recipe, compared, model, spacing):
        text = item._repr_html_()
        assert "script" not in Checked(text).tags
        assert "\x1b" not in text


class Handle:
    """What IPython's `display` returns."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, element: str) -> None:
        self.shown.append(element)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Handle:
    """A notebook: `display` and `HTML` of IPython, which need not be installed."""
    handle = Handle()

    def display(element: str, *, display_id: bool) -> Handle:
        handle.shown.append(element)
        return handle

    module = types.ModuleType("IPython.display")
    vars(module).update(display=display, HTML=str)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(terminal, "in_notebook", lambda: True)
    monkeypatch.setattr(notebook, "INTERVAL", 0.0)
    return handle


def test_bars_count_and_disappear(kernel: Handle, capsys: pytest.CaptureFixture[str]) -> None:
    sds.sample(sds.grid_mixture(sds.VP()), "euler", steps=3, progress=True)
    numbers = [re.findall(r"value='(\d+)' max='(\d+)'", shown) for shown in kernel.shown[:-1]]
    assert numbers == [[("0", "3")], [("1", "3")], [("2", "3")], [("3", "3")]]
    assert kernel.shown[-1] == ""
    assert capsys.readouterr() == ("", "")


def test_bars_of_samples_and_messages(kernel: Handle) -> None:
    with terminal.samples_bar(EVIL, 10, 4) as show:
        show(7.5)
    with terminal.message_line("tuning") as say:
        say(EVIL)
    assert "value='4' max='10'" in kernel.shown[0]
    assert "value='7.5' max='10'" in kernel.shown[1]
    assert "<progress></progress>" in kernel.shown[-2]
    assert all("script" not in Checked(shown).tags for shown in kernel.shown)


def test_a_bar_disappears_after_an_error(kernel: Handle) -> None:
    bar = terminal.counting_bar("bar", 3, "units")
    bar.__enter__()(1)
    bar.__exit__(ValueError, ValueError("x"), None)
    assert kernel.shown[-1] == ""


def test_a_terminal_is_no_notebook() -> None:
    assert not notebook.in_notebook()
