"""Sheets show their pictures unchanged, and their labels as text."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import sdesamplers as sds
from sdesamplers.io.sheets import Sheet, Tile

SVG = "{http://www.w3.org/2000/svg}"


def sheet() -> Sheet:
    return Sheet(
        [("first <row>", [Tile(Image.new("RGB", (40, 30), "red"), "caption"), Tile(reason="too few steps")])],
        ["5", "10"],
        "title & name",
        "a note " * 40,
    )


def test_pictures_are_unchanged_and_do_not_overlap_text():
    pixels = np.asarray(sheet().image())
    red = (pixels == [255, 0, 0]).all(-1)
    rows, columns = np.nonzero(red)
    assert red.sum() == 40 * 30
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (30, 40)
    dark = pixels.sum(-1) < 200
    assert dark[: rows.min()].any()  # the title and headings
    assert dark[:, : columns.min()].any()  # the label


def test_svg_has_the_same_places_and_text():
    root = ElementTree.fromstring(sheet().svg())
    made = sheet().image()
    assert (int(root.get("width")), int(root.get("height"))) == made.size
    [image] = root.iter(f"{SVG}image")
    data = base64.b64decode(image.get("href").partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (40, 30)
    x, y = int(image.get("x")), int(image.get("y"))
    assert made.getpixel((x, y)) == made.getpixel((x + 39, y + 29)) == (255, 0, 0)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"first <row>", "title & name", "5", "10", "caption"} <= set(texts)
    assert " ".join(texts).count("a note") == 40


def test_the_ending_of_a_name_chooses_the_format(tmp_path):
    assert sheet().save(tmp_path / "new" / "a.svg").read_text().startswith("<svg")
    assert Image.open(sheet().save(tmp_path / "a.png")).format == "PNG"
    with pytest.raises(sds.UsageError, match=r"sheets are written as .png or .svg"):
        sheet().save(tmp_path / "a.jpg")


def test_strips_are_one_row_each():
    images = [Image.new("L", (8, 8), 255 * k) for k in range(3)]
    made = Sheet.of_strips([("a", images), ("b", images)])
    assert [len(tiles) for _, tiles in made.rows] == [1, 1]
    width, height = made.rows[0][1][0].picture.size
    assert width > 2.9 * height
