"""The page in a headless Chromium: no error, no request, readable, usable by keyboard and on a telephone."""

import json

import pytest
from browser import browser, browser_page, console_errors  # noqa: F401  fixtures
from made_comparisons import HOSTILE, comparison

pytest.importorskip("matplotlib", reason="reports need matplotlib: pip install 'sdesamplers[report]'")
pytestmark = pytest.mark.slow

SERIOUS = ("serious", "critical")
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pages of pictures and of vectors, with names that try to break out."""
    folder = tmp_path_factory.mktemp("pages")
    names = ("heun", HOSTILE, "a name that is very long indeed and has no end to it, or nearly so")
    pictures = comparison((1, 8, 8), names, name=HOSTILE, problem="it cannot run on this model")
    vectors = comparison((5,), tuple("abcdefghijkl"), (4, 8, 16, 32))
    return {
        "pictures": pictures.report(folder / "pictures.html").as_uri(),
        "vectors": vectors.report(folder / "vectors.html").as_uri(),
        "data": json.loads(json.dumps(pictures.as_dict())),
    }


@pytest.fixture
def opened(browser_page):  # noqa: F811
    """A function that opens a page and returns it; no address but that of a file may be requested."""
    requests = []
    browser_page.on("request", lambda request: requests.append(request.url))

    def opening(address, **media):
        browser_page.emulate_media(**media)
        browser_page.goto(address)
        return browser_page

    yield opening
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests), requests


@pytest.mark.parametrize("kind", ["pictures", "vectors"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(opened, files, kind, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = opened(files[kind], color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    assert [v["id"] for v in found if v["impact"] in SERIOUS] == []


@pytest.mark.parametrize("kind", ["pictures", "vectors"])
def test_it_fits_a_telephone(opened, files, kind):
    page = opened(files[kind])
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    sizes = page.evaluate(
        "Array.from(document.querySelectorAll('.wide svg text')).map(t => t.getBoundingClientRect().height)"
    )
    assert min(sizes) > 7


def test_figures_are_drawn(opened, files):
    page = opened(files["vectors"])
    boxes = page.evaluate(
        "Array.from(document.querySelectorAll('figure > svg, figure .scroll svg')).map(s => "
        "[s.getBoundingClientRect().width, s.getBoundingClientRect().height, s.querySelectorAll('path').length])"
    )
    assert len(boxes) == 6 + 12 + 3 * 4
    assert all(width > 200 and height > 80 and paths > 5 for width, height, paths in boxes)
    colours = page.evaluate(
        "Array.from(document.querySelectorAll('.legend use'), u => getComputedStyle(document.querySelector("
        "u.getAttribute('href') + ' path[style*=stroke]')).stroke)"
    )
    assert len(colours) == 12
    assert len(set(colours)) == 7
    assert all(colour.startswith("rgb") for colour in colours)


def test_the_table_sorts_by_keyboard(opened, files):
    page = opened(files["pictures"])
    heading = page.locator("#table thead button", has_text="ODE error")
    heading.focus()

    def column():
        values = page.evaluate(
            "Array.from(document.querySelectorAll('#table tbody tr'), r => r.cells[5].dataset.value)"
        )
        return [float(value) if value else None for value in values]

    page.keyboard.press("Enter")
    assert column() == [1 / 8, 1 / 4, 1 / 4, 1 / 2, None, None]
    assert page.locator("#table th[aria-sort=ascending]").inner_text().startswith("ODE error")
    page.keyboard.press("Enter")
    assert column() == [1 / 2, 1 / 4, 1 / 4, 1 / 8, None, None]


def test_differences_are_shown(opened, files):
    page = opened(files["pictures"])
    picture = page.locator("tr[data-sampler='0'] .strip .pic").first
    cover = picture.locator(".ref")

    def style(name):
        return cover.evaluate(f"(e) => getComputedStyle(e)['{name}']")

    assert style("opacity") == "0"
    picture.hover()
    assert (style("opacity"), style("mixBlendMode")) == ("1", "difference")
    page.mouse.move(0, 0)
    assert style("opacity") == "0"
    page.locator("input[value=samples]").focus()
    page.keyboard.press("ArrowRight")
    assert (style("opacity"), style("mixBlendMode")) == ("1", "difference")
    page.keyboard.press("ArrowRight")
    assert (style("opacity"), style("mixBlendMode")) == ("1", "normal")


def test_a_sampler_is_highlighted_and_the_theme_changed(opened, files):
    page = opened(files["pictures"], color_scheme="light")
    page.locator(".legend button").first.focus()
    page.keyboard.press("Space")
    dimmed = page.evaluate("Array.from(document.querySelectorAll('.dimmed'), e => e.dataset.sampler)")
    assert dimmed
    assert set(dimmed) == {"1", "2"}
    page.keyboard.press("Space")
    assert page.locator(".dimmed").count() == 0
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    page.get_by_role("button", name="Dark colours").click()
    assert page.evaluate(paper) != before
    assert page.get_by_role("button", name="Light colours").is_visible()


def test_the_numbers_are_saved(opened, files, tmp_path):
    page = opened(files["pictures"])
    with page.expect_download() as started:
        page.get_by_role("button", name="Save the numbers as JSON").click()
    started.value.save_as(tmp_path / "saved.json")
    assert json.loads((tmp_path / "saved.json").read_text()) == files["data"]


def test_without_scripts_all_is_there(browser, files):  # noqa: F811
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files["pictures"])
    assert page.locator("#table tbody tr").count() == 6
    assert page.locator("#theme").is_hidden()
    assert page.locator("img").count() > 10
    context.close()
