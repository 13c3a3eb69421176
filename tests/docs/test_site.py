"""The documentation site: it builds without a warning, its links and anchors lead somewhere, its API is complete."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import sdesamplers as sds
from sdesamplers import coefficients, losses, testing

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytest.importorskip("mkdocs", reason="the site needs pip install '.[docs]'")


class Page(HTMLParser):
    """What a page refers to, its anchors, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "img" or (tag == "script" and given.get("src")):
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(given["href"])

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder, built by mkdocs, for which warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {file.relative_to(site).as_posix(): Page(file) for file in site.rglob("*.html") if file.name != "404.html"}


@pytest.mark.slow
def test_every_link_and_anchor_leads_somewhere(site, pages):
    broken = []
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            file = (site / name).parent / unquote(parts.path) if parts.path else site / name
            file = file / "index.html" if file.is_dir() else file
            target = file.resolve().relative_to(site.resolve()).as_posix()
            anchors = pages[target].anchors if target in pages else set()
            if not file.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{name}: {link}")
    assert not broken, broken


@pytest.mark.slow
def test_links_into_the_repository_name_files_that_are_there(pages):
    found = 0
    for name, page in pages.items():
        for link in page.links:
            where = re.match(r"https://github\.com/sdesamplers/sdesamplers/(?:blob|tree)/main/([^#]+)", link)
            if where:
                found += 1
                assert (ROOT / unquote(where[1])).exists(), f"{name}: {link}"
    assert found > 50


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site, pages):
    outside = {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc}
    assert not outside
    styles = "\n".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import )['\"]?https?:", styles)


@pytest.mark.slow
def test_every_page_is_reached_from_the_index(site, pages):
    reached, ahead = {"index.html"}, ["index.html"]
    while ahead:
        name = ahead.pop()
        for link in pages[name].links:
            parts = urlsplit(link)
            if parts.scheme or not parts.path:
                continue
            target = ((site / name).parent / unquote(parts.path)).resolve().relative_to(site.resolve()).as_posix()
            if target in pages and target not in reached:
                reached.add(target)
                ahead.append(target)
    assert reached == set(pages)


@pytest.mark.slow
def test_every_public_name_has_an_api_entry(pages):
    entries = {anchor for name, page in pages.items() if name.startswith("api/") for anchor in page.anchors}
    public = {f"sdesamplers.{name}" for name in (*sds.__all__, "reversed") if name != "__version__"}
    public |= {f"sdesamplers.testing.{name}" for name in testing.__all__}
    for module in (losses, coefficients):
        own = [value for name, value in vars(module).items() if not name.startswith("_") and callable(value)]
        here = {value.__name__ for value in own if getattr(value, "__module__", "") == module.__name__}
        listed = {"phi", "lagrange", "derivative_weights", "lagrange_integrals", "quadrature"}
        listed |= {"semilinear", "semilinear_sde"}
        public |= {f"{module.__name__}.{name}" for name in (here if module is losses else here & listed)}
    assert public <= entries, sorted(public - entries)


def test_links_between_pages_name_files_that_are_there():
    """In the pages' sources, which needs no site."""
    found = 0
    for page in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(([^()\s#:]+\.\w+)(?:#[^()\s]*)?\)", page.read_text(encoding="utf-8")):
            found += 1
            assert (page.parent / unquote(link)).exists(), f"{page.name}: {link}"
    assert found > 100


def test_every_public_name_is_documented_once():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    names = re.findall(r"^::: sdesamplers\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted({*sds.__all__, "reversed"} - {"__version__"})


@pytest.mark.slow
def test_the_command_line_page_has_every_command_and_option(pages):
    from sdesamplers.cli import cli

    text = pages["command-line.html"].text
    for name, command in cli.commands.items():
        assert f"sdesamplers {name} " in text
        for option in command.params:
            if option.param_type_name == "option":
                assert all(spelling in text for spelling in option.opts), (name, option.opts)


@pytest.mark.slow
def test_equations_are_rendered(pages):
    assert "$" not in re.sub(r"\$[A-Z_/]+", "", pages["theory.html"].text)


@pytest.mark.slow
def test_docstring_sections_are_rendered(pages):
    """`Args:` becomes "Parameters:"; left as it is, the parser did not read the docstring as Google's style."""
    for name, page in pages.items():
        if name.startswith("api/"):
            assert not re.search(r"^\s*Args:", page.text, re.MULTILINE), name
