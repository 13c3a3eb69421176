"""The pages made from the registry are those that are checked in."""

import re
from pathlib import Path

import pytest
from make_pages import PAGES, write_pages

from sdesamplers.registry import catalogue
from sdesamplers.registry.registry import Registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def registry():
    return Registry(catalogue=catalogue.read(catalogue.SHIPPED, allow_plugins=False))


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_fresh(name, registry):
    made = PAGES[name](registry)
    assert (DOCS / name).read_text(encoding="utf-8") == made, "run python docs/make_pages.py"


def test_the_samplers_page_names_every_sampler_grid_and_noise_source(registry):
    text = PAGES["samplers.md"](registry)
    for shelf in (registry.samplers, registry.spacings, registry.noises):
        for name in shelf:
            assert f"\n| `{name}` |" in text
    row = next(line for line in text.splitlines() if line.startswith("| `ddim` |"))
    assert "| ddim | 1 | 1 | no | no | `eta=0.0` |" in row
    assert "`ddim-leading`" in row
    assert "diffusers, ComfyUI, A1111 and Forge" in row


def test_the_names_page_has_every_name_of_every_peer(registry):
    text = PAGES["names.md"](registry)
    for kinds in registry.catalogue.peers.values():
        for names in kinds.values():
            for name, entry in names.items():
                assert f"\n| `{name}` | " in text
                if isinstance(entry, dict) and "reason" in entry:
                    assert f"| `{name}` | nothing: {entry['reason']} |" in text
    assert "| `DPM++ 2M SDE` | `dpmpp-2m-sde`, grid `exponential`, noise `brownian` |" in text
    assert "without `comfyui:` in front, `euler` |" in text


def test_pages_are_tables_of_equal_rows(registry):
    for page in PAGES.values():
        blocks = [block.splitlines() for block in page(registry).split("\n\n") if block.startswith("|")]
        assert blocks
        for rows in blocks:
            widths = {row.replace("\\|", "").count("|") for row in rows}
            assert len(widths) == 1, rows[0]


def test_pages_are_written_where_one_says(tmp_path):
    files = write_pages(tmp_path)
    assert [file.name for file in files] == list(PAGES)
    assert all(file.read_text(encoding="utf-8").startswith("# ") for file in files)


def test_the_inventory_counts_what_there_is(registry):
    text = (DOCS / "inventory.md").read_text(encoding="utf-8")
    for kind, shelf in (("Samplers", registry.samplers), ("Time grids", registry.spacings)):
        own = [item for item in shelf.values() if str(item.plugin).startswith("sdesamplers:")]
        found = re.search(rf"\| {kind}, (\d+) \|", text)
        assert found is not None
        assert int(found[1]) == len(own)


@pytest.mark.parametrize("pattern", ["docs/**/*.md", "benchmarks/results/*.md", "studies/results/*.md"])
def test_the_site_has_every_page(pattern):
    files = [file for file in ROOT.glob(pattern) if file.name != "README.md"]
    assert files
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [
        str(name) for file in files if f" {(name := file.relative_to(ROOT))}\n".replace(" docs/", " ") not in listed
    ]
    assert not missing, "add them to nav in mkdocs.yml"
