"""What is on a sheet that was written as SVG."""

import base64
import io
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

SVG = "{http://www.w3.org/2000/svg}"


def parts(file: Path) -> tuple[list[Image.Image], list[str]]:
    """The pictures and the lines of text of a sheet, from top to bottom."""
    root = ElementTree.parse(file).getroot()
    data = [base64.b64decode(each.get("href", "").partition(",")[2]) for each in root.iter(f"{SVG}image")]
    return [Image.open(io.BytesIO(each)) for each in data], [text.text or "" for text in root.iter(f"{SVG}text")]
