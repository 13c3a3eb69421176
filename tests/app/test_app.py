"""The page: what it runs equals `sample`, its limits hold, and a headless browser can use it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from warnings import catch_warnings

import numpy as np
import pytest
import torch
from browser import browser_page  # noqa: F401
from click.testing import CliRunner

import sdesamplers as sds
from sdesamplers.app import page as app_page
from sdesamplers.app.figures import grids_figure, trajectory_picture
from sdesamplers.app.runs import Wanted, check_shows, classes_of, run_samplers
from sdesamplers.cli import cli


@pytest.fixture(scope="module")
def model() -> sds.Model:
    return sds.load("fashion-mnist")


def test_what_it_runs_is_sample(model: sds.Model) -> None:
    said: list[tuple[float, str]] = []
    shown = run_samplers(model, Wanted(["heun", "ddim", "heun"], 4, 2, seed=5), lambda *each: said.append(each))
    assert "unstable" in shown[0].row[-1]  # a warning of the run
    assert shown[1].row[-1] == ""
    assert [each.name for each in shown] == ["heun", "ddim"]
    for each in shown:
        assert each.result is not None
        with catch_warnings(record=True):
            expected = sds.sample(model, each.name, nfe=4, num_samples=2, seed=5)
        assert torch.equal(each.result.samples, expected.samples)
        assert each.row[:3] == [each.name, str(expected.nfe), str(expected.recipe.steps)]
    shares = [share for share, _ in said]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1


def test_one_sampler_that_does_not_run_has_its_reason(model: sds.Model) -> None:
    shown = run_samplers(model, Wanted(["ula", "ddim"], 3, 1))
    assert shown[0].result is None
    assert "ula" in shown[0].row[-1]
    assert shown[1].result is not None
    with pytest.raises(sds.UsageError, match="ula"):
        run_samplers(model, Wanted(["ula"], 3, 1))
    stop = threading.Event()
    stop.set()
    with pytest.raises(sds.Cancelled):
        run_samplers(model, Wanted(["ddim"], 3, 1), cancel=stop)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samplers": []}, "choose 1 to 6 samplers, not 0"),
        ({"samplers": list("abcdefg")}, "choose 1 to 6 samplers, not 7"),
        ({"nfe": 201}, "nfe must be 200 or less"),
        ({"nfe": 0}, "nfe must be a whole number of 1 or more"),
        ({"num_samples": 17}, "num_samples must be 16 or less"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number"),
        ({"condition": "x" * 2001}, "a prompt may have 2000 characters"),
    ],
)
def test_limits(values: dict[str, Any], message: str) -> None:
    with pytest.raises(sds.UsageError, match=message):
        Wanted(**{"samplers": ["ddim"], "nfe": 4, **values})


def test_pictures_show_what_they_say(model: sds.Model) -> None:
    results = [each.result for each in run_samplers(model, Wanted(["ddim", "euler"], 3, 1)) if each.result is not None]
    picture = np.asarray(trajectory_picture(model, results).convert("L"), dtype=float)
    cells = picture[2:-2, 2:-2].reshape(picture.shape[0] - 4, -1)[:84]  # the first row of tiles
    noise, sample = cells[:, :84], cells[:, -84:]
    expected = np.asarray(results[0].images[0], dtype=float)
    assert np.abs(sample[::3, ::3] - expected).max() <= 1  # magnified three times
    assert noise.std() > 60  # N(0, 1) in [-1, 1], clipped
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    figure = grids_figure(model, ["ddim", "euler"], [result.recipe for result in results])
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ddim", "euler"]
    assert results[0].trajectory is not None
    start = float(results[0].trajectory.times[0])
    snr = 2 * np.log(float(model.gaussian.alpha(start)) / float(model.gaussian.sigma(start)))
    lines = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) > 1]
    assert lines[0][0] == pytest.approx(snr)


def test_models_without_pictures_and_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = sds.GaussianModel([0.5, -0.5], 0.3, sds.VP(), name="gauss")
    with pytest.raises(sds.UsageError, match=r"the page shows images, and samples of 'gauss' have shape \(2,\)"):
        check_shows(vectors)
    assert classes_of(vectors) == 0
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    found = CliRunner().invoke(cli, ["app", "fashion-mnist"])
    assert str(found.exception) == "the app needs gradio: pip install 'sdesamplers[app]'"


def test_a_port_in_use_is_refused_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = CliRunner().invoke(cli, ["app", "no-such-model", "--port", str(port)])
        assert isinstance(found.exception, sds.UsageError)
        assert found.exception.in_options == f"port {port}: Address already in use; pass another --port"


# In a browser


def low_contrasts(page: Any) -> list[str]:
    """The texts that axe-core finds hard to read; nothing is checked without it.

    The colours are those of our theme; the rest of the markup is gradio's.
    """
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        return []
    found = Axe().run(page).response["violations"]
    return [node["html"] for each in found if each["id"] == "color-contrast" for node in each["nodes"]]


@pytest.fixture
def address(model: sds.Model) -> Any:
    pytest.importorskip("gradio", reason="the page needs pip install 'sdesamplers[app]'")
    with app_page.serve(model, ["ddim", "heun"]) as address:
        yield address


@pytest.mark.slow
def test_a_browser_samples_and_downloads_the_recipe(address: str, browser_page: Any, tmp_path: Path) -> None:  # noqa: F811
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.goto(address)
    browser_page.get_by_role("button", name="Sample", exact=True).wait_for()
    browser_page.locator("#nfe input[type=number]").fill("4")
    browser_page.locator("#samples input[type=number]").fill("2")
    browser_page.locator("#seed input").fill("7")
    browser_page.locator("#seed input").blur()
    browser_page.get_by_role("button", name="Sample", exact=True).click()
    browser_page.get_by_text("ddim: 4 evaluations").first.wait_for(timeout=60_000)
    browser_page.get_by_text("heun: 3 evaluations").first.wait_for()
    assert browser_page.locator("#gallery img").count() >= 2
    for tab in ("Trajectory", "Grids", "Recipe"):
        browser_page.get_by_role("tab", name=tab, exact=True).click()
    browser_page.get_by_role("radio", name="heun").check()
    browser_page.get_by_text("sampler: heun").wait_for()
    browser_page.get_by_text("Download heun.yaml").wait_for()
    with browser_page.expect_download() as download:
        browser_page.get_by_text("Download heun.yaml").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "heun.yaml"
    model = sds.load("fashion-mnist")
    expected = sds.sample(model, "heun", nfe=4, seed=7, num_samples=2)
    assert sds.Recipe.load(file) == expected.recipe
    assert torch.equal(sds.sample(model, str(file), seed=7, num_samples=2).samples, expected.samples)
    hosts = {urlsplit(url).hostname for url in asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")}
    assert hosts == {"127.0.0.1"}


@pytest.mark.slow
def test_an_error_is_a_line_on_the_page(address: str, browser_page: Any) -> None:  # noqa: F811
    browser_page.goto(address)
    browser_page.get_by_role("button", name="Sample", exact=True).wait_for()
    assert low_contrasts(browser_page) == []
    browser_page.locator("#nfe input[type=number]").fill("1")
    browser_page.locator("#nfe input[type=number]").blur()
    for _ in range(2):  # no sampler is chosen
        browser_page.locator("#samplers button.token-remove, #samplers .token-remove").first.click()
    browser_page.get_by_role("button", name="Sample", exact=True).click()
    browser_page.get_by_text("choose 1 to 6 samplers, not 0").first.wait_for(timeout=30_000)
