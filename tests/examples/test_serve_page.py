"""The page of examples/serve.py in a headless browser: draw, progress, cancel, download, refusals, accessibility."""

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from example_server import Client
from lanes import mostly_slow
from safetensors.torch import load_file
from torch import Tensor

import sdesamplers as sds

Start = Callable[..., Client]


def new_model(opened: threading.Event) -> sds.Model:
    """Pictures of 8 by 8, of a network that waits until the test goes on."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        assert opened.wait(timeout=60)
        return x * (t.view(-1, 1, 1, 1) - 0.5)

    return sds.FunctionModel(network, sds.RectifiedFlow(), "flow", (1, 8, 8), data_range=(-2.0, 2.0), clip=False)


@pytest.fixture
def opened() -> Any:
    opened = threading.Event()
    yield opened
    opened.set()


def test_draw_and_download(start_server: Start, browser_page: Any, opened: threading.Event, tmp_path: Any) -> None:
    model = new_model(opened)
    client, page = start_server(model), browser_page
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url else "data"))
    page.goto(client.url)
    page.get_by_label("Sampler").select_option("heun")
    assert "Heun" in page.locator("#summary").inner_text()
    options = page.get_by_label("Sampler").locator("option").all_inner_texts()
    assert options == sorted(client.worker.samplers)
    for label, value in (("Steps", "4"), ("Seed", "9"), ("Pictures", "3")):
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_role("button", name="Draw").click()
    bar = page.get_by_role("progressbar", name="Progress of heun, 4 steps, seed 9, 3 pictures")
    bar.wait_for()
    assert bar.get_attribute("max") == "7"
    assert "waiting" in page.get_by_role("status").inner_text()
    opened.set()
    page.get_by_text("done, 7 of 7 evaluations").wait_for()
    assert not bar.is_visible()
    assert not page.get_by_role("button", name="Cancel").is_visible()
    expected = sds.sample(model, "heun", steps=4, seed=9, num_samples=3)
    sizes = page.eval_on_selector_all(
        "img", "async all => { await Promise.all(all.map(i => i.decode())); return all.map(i => i.naturalWidth); }"
    )
    assert sizes == [8, 8, 8]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download all as safetensors").click()
    assert download.value.suggested_filename == "heun-4-9.safetensors"
    download.value.save_as(tmp_path / "samples.safetensors")
    assert torch.equal(load_file(tmp_path / "samples.safetensors")["samples"], expected.samples)
    with page.expect_download() as download:
        page.get_by_role("link", name="Sample 2").click()
    assert download.value.suggested_filename == "heun-4-9-2.png"
    assert hosts <= {f"127.0.0.1:{client.port}", "data"}


def test_cancel(start_server: Start, browser_page: Any, opened: threading.Event) -> None:
    client, page = start_server(new_model(opened)), browser_page
    page.goto(client.url)
    page.get_by_label("Sampler").locator("option").first.wait_for(state="attached")
    for seed in ("1", "2"):
        page.get_by_label("Seed", exact=True).fill(seed)
        page.get_by_role("button", name="Draw").click()
        page.get_by_role("heading", name=f"seed {seed},").wait_for()
    page.get_by_role("button", name=re.compile("^Cancel .* seed 1,")).click()
    page.get_by_text("cancelled: by the client").wait_for()
    opened.set()
    page.get_by_text("done, 20 of 20 evaluations").wait_for()
    states = page.locator("article").evaluate_all("all => all.map(each => each.className)")
    assert states == ["done", "cancelled"]  # the newest first


def test_refusals_are_shown(
    start_server: Start, browser_page: Any, opened: threading.Event, console_errors: list[str]
) -> None:
    client, page = start_server(new_model(opened), queue=1, streams=1), browser_page
    page.goto(client.url)
    page.get_by_label("Sampler").locator("option").first.wait_for(state="attached")
    draw = page.get_by_role("button", name="Draw")
    draw.click()
    page.get_by_role("heading", name="dpmpp-2m, 20 steps").wait_for()
    draw.click()
    page.get_by_role("alert").filter(has_text="the queue is full (limit 1); try again later").wait_for()
    page.get_by_label("Steps", exact=True).fill("101")
    draw.click()
    assert page.get_by_label("Steps", exact=True).evaluate("input => input.validity.rangeOverflow")  # by the browser
    assert [text for text in console_errors if "503" not in text] == []
    console_errors.clear()


@pytest.mark.slow
def test_a_page_without_a_stream_reads_the_request(
    start_server: Start, browser_page: Any, opened: threading.Event, console_errors: list[str]
) -> None:
    """When too many streams are open, as with other pages."""
    client, page = start_server(new_model(opened), streams=1), browser_page
    path = client.add(steps=1)
    connection = client.connect()
    connection.request("GET", path + "/events")
    assert connection.getresponse().readline()
    page.goto(client.url)
    page.get_by_label("Sampler").locator("option").first.wait_for(state="attached")
    with page.expect_response(lambda response: response.url.endswith("/events")) as refused:
        page.get_by_role("button", name="Draw").click()
    assert refused.value.status == 503
    opened.set()
    page.get_by_text("done, 20 of 20 evaluations").wait_for()
    connection.close()
    assert console_errors  # the browser reports the refusal
    console_errors.clear()


@pytest.mark.parametrize("scheme", mostly_slow(["light", "dark"], keep=["light"]))
def test_accessibility(start_server: Start, browser_page: Any, opened: threading.Event, scheme: str) -> None:
    """No violation of axe's rules, contrast included, with a finished and a waiting request, on a narrow screen too."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    client, page = start_server(new_model(opened)), browser_page
    page.emulate_media(color_scheme=scheme)
    page.goto(client.url)
    page.get_by_label("Sampler").locator("option").first.wait_for(state="attached")
    opened.set()
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("done, 20 of 20 evaluations").wait_for()
    opened.clear()
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("waiting for the first batch").wait_for()
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
