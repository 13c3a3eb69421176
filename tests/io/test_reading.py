"""Data from files that nobody vouches for: the right numbers, or one line, in bounded time and memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from PIL import Image
from safetensors.torch import save_file

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.errors import UsageError
from sdesamplers.io.datasets import as_states, read_data

SIDE = 8
RAMP = np.arange(SIDE * SIDE, dtype=np.float64).reshape(SIDE, SIDE) / (SIDE * SIDE - 1)
"""Grey values from 0 to 1, each in one place."""


def model(channels: int = 1, height: int = SIDE, width: int = SIDE, data_range: Any = (-1.0, 1.0)) -> sds.FunctionModel:
    """A model of pictures."""
    return sds.FunctionModel(
        lambda x, t: x, sds.VP(), "epsilon", (channels, height, width), data_range=data_range, name="pictures"
    )


def png(
    rows: bytes, depth: int, colour: int, *chunks: tuple[bytes, bytes], side: tuple[int, int] = (SIDE, SIDE)
) -> bytes:
    """A PNG file written by hand: filter 0 before each row is in `rows`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", *side, depth, colour, 0, 0, 0)
    body = b"".join(chunk(kind, content) for kind, content in chunks)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def rows_of(values: np.ndarray) -> bytes:
    """A picture's rows, each behind its filter byte."""
    return b"".join(b"\0" + row.tobytes() for row in values)


def refused(path: Path, match: str, channels: int = 1) -> str:
    with pytest.raises(UsageError, match=match) as caught:
        read_data(path, model(channels))
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    return message


def test_16_bits_of_grey_keep_every_value(tmp_path: Path) -> None:
    levels = np.round(RAMP * 65535).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(rows_of(levels.astype(">u2")), 16, 0))
    for channels in (1, 3):
        data, names = read_data(tmp_path, model(channels))
        assert names == ["a.png"]
        expected = torch.from_numpy(levels / 65535 * 2 - 1).float().expand(1, channels, SIDE, SIDE)
        torch.testing.assert_close(data, expected, rtol=0, atol=1e-6)
    Image.fromarray(levels).save(tmp_path / "b.tif")
    (tmp_path / "a.png").unlink()
    data, _ = read_data(tmp_path, model())
    np.testing.assert_allclose(data[0, 0], levels / 65535 * 2 - 1, atol=1e-6)
    pictures = [Image.open(tmp_path / "b.tif"), Image.fromarray(levels)]
    np.testing.assert_allclose(as_states(model(), pictures, "data")[:, 0], [levels / 65535 * 2 - 1] * 2, atol=1e-6)


def test_16_bits_of_colour_are_right_to_a_level(tmp_path: Path) -> None:
    levels = np.round(RAMP * 65535).astype(np.uint16)
    colours = np.stack([levels, levels[::-1], levels.T], -1)
    (tmp_path / "a.png").write_bytes(png(rows_of(colours.astype(">u2")), 16, 2))
    data, _ = read_data(tmp_path / "a.png", model(3))
    np.testing.assert_allclose(data[0].permute(1, 2, 0), colours / 65535 * 2 - 1, atol=2 / 255)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_of_grey(tmp_path: Path, depth: int) -> None:
    levels = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 2**depth
    bits = np.unpackbits(levels.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :].reshape(SIDE, -1)
    (tmp_path / "a.png").write_bytes(png(rows_of(np.packbits(bits, axis=-1)), depth, 0))
    data, _ = read_data(tmp_path / "a.png", model())
    np.testing.assert_allclose(data[0, 0], levels / (2**depth - 1) * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_exif_orientation_is_followed(tmp_path: Path, orientation: int, ending: str) -> None:
    """Exif 2.32, 4.6.5: where the stored rows and columns begin."""
    shown = np.zeros((SIDE, 2 * SIDE), np.uint8)
    shown[: SIDE // 2, : SIDE // 2] = 255  # white at the top left of what is to be seen
    undone = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].T,
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    stored = Image.fromarray(np.ascontiguousarray(undone(shown)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{ending}", exif=exif, **({"quality": 100} if ending == "jpg" else {}))
    expected = shown.astype(np.float64) / 255 * 2 - 1
    if ending == "tif" and orientation > 4:
        with pytest.raises(UsageError, match="rotated by its Exif orientation"):
            read_data(tmp_path, model(1, SIDE, 2 * SIDE))
        return
    for given in (tmp_path, None):
        this = model(1, SIDE, 2 * SIDE)
        data = read_data(given, this)[0] if given else as_states(this, [Image.open(tmp_path / f"a.{ending}")], "data")
        np.testing.assert_allclose(data[0, 0], expected, atol=0.03)


def palette(tmp_path: Path, transparency: Any) -> Path:
    picture = Image.fromarray((np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 4).astype(np.uint8), "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255])
    picture.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    return tmp_path / "a.png"


def test_palettes(tmp_path: Path) -> None:
    colours = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])
    expected = colours[np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 4]
    for opaque in (None, b"\xff\xff\xff\xff", 200):  # 200 is a colour that no place has
        data, _ = read_data(palette(tmp_path, opaque), model(3))
        np.testing.assert_allclose(data[0].permute(1, 2, 0), expected)
    for clear in (0, b"\xff\x00\xff\xff", b"\xff\xff\x7f"):
        refused(palette(tmp_path, clear), "transparent pixels", 3)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_transparency(tmp_path: Path, mode: str, channels: int) -> None:
    grey = np.round(RAMP * 255).astype(np.uint8)
    for alpha in (255, 128):
        bands = [grey] * (1 if mode == "LA" else 3) + [np.full_like(grey, alpha)]
        Image.fromarray(np.stack(bands, -1), mode).save(tmp_path / "a.png")
        if channels < 4 and alpha < 255:
            refused(tmp_path / "a.png", "transparent pixels", channels)
            continue
        data, _ = read_data(tmp_path / "a.png", model(channels))
        expected = np.stack([grey] * min(channels, 3) + [np.full_like(grey, alpha)] * (channels == 4)) / 255 * 2 - 1
        np.testing.assert_allclose(data[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "ending", "match"),
    [("F", "tif", "floating-point"), ("I", "tif", "32-bit"), ("CMYK", "tif", "CMYK"), ("CMYK", "jpg", "CMYK")],
)
def test_numbers_of_unknown_meaning_are_refused(tmp_path: Path, mode: str, ending: str, match: str) -> None:
    Image.new(mode, (SIDE, SIDE)).save(tmp_path / f"a.{ending}")
    refused(tmp_path / f"a.{ending}", match)
    with pytest.raises(UsageError, match=match):
        as_states(model(), Image.new(mode, (SIDE, SIDE)), "data")


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_several_frames_are_refused(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    refused(tmp_path / f"a.{ending}", "several frames", 3)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose pixels would fill memory."""
    return png(b"\0" * 1000, 8, 2, side=(width, height))


TEXT = zlib.compress(b"x" * 200_000_000, 9)
HOSTILE: list[tuple[str, bytes, str]] = [
    ("giant.png", bomb(60_000, 60_000), "not a readable picture|is 60000x60000"),
    ("large.png", bomb(12_000, 12_000), "is 12000x12000"),
    ("narrow.png", bomb(2**31 - 1, 1), "not a readable picture|is 2147483647x1"),
    ("empty.png", png(b"", 8, 0, side=(0, 0)), "not a readable picture|is 0x0"),
    ("flat.png", png(b"", 8, 0, side=(8, 0)), "not a readable picture|is 8x0"),
    ("short.png", png(b"\0" * 5, 8, 0), "not a readable picture"),
    ("text.png", png(rows_of(np.zeros((8, 8), np.uint8)), 8, 0, (b"zTXt", b"k\0\0" + TEXT)), "not a readable picture"),
    ("itext.png", png(rows_of(np.zeros((8, 8), np.uint8)), 8, 0, (b"iTXt", b"k\0\1\0\0\0" + TEXT)), "not a readable"),
    ("profile.png", png(rows_of(np.zeros((8, 8), np.uint8)), 8, 0, (b"iCCP", b"k\0\0" + TEXT)), "not a readable"),
    ("nothing.png", b"", "not a readable picture"),
    ("page.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a readable picture"),
    ("film.png", b"GIF89a\x08\x00\x08\x00\x00\x00\x00;", "not a readable picture"),
    ("letters.png", "Grüße \x1b[31m".encode(), "not a readable picture"),
]


@pytest.mark.parametrize(("name", "content", "match"), HOSTILE, ids=[name for name, *_ in HOSTILE])
def test_hostile_pictures(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if name in ("text.png", "itext.png", "profile.png"):  # a bomb beside the pixels need not be looked at
        with contextlib.suppress(UsageError):
            assert read_data(tmp_path / name, model())[0].shape == (1, 1, 8, 8)
    else:
        refused(tmp_path / name, match)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "int64", "uint64", ">u4"])
def test_whole_numbers_are_levels(tmp_path: Path, dtype: str) -> None:
    levels = np.round(RAMP * 255).astype(dtype)[None, None]
    np.save(tmp_path / "a.npy", levels)
    data, _ = read_data(tmp_path / "a.npy", model())
    np.testing.assert_allclose(data, levels.astype(float) / 255 * 2 - 1, atol=1e-6)
    if dtype != "uint8":
        for wrong in (256, -1 if "i" in dtype and "u" not in dtype else 300):
            spoilt = levels.copy()
            spoilt[0, 0, 3, 3] = wrong
            np.save(tmp_path / "b.npy", spoilt)
            assert str(wrong) in refused(tmp_path / "b.npy", "levels from 0 to 255")


def test_whole_numbers_in_safetensors(tmp_path: Path) -> None:
    levels = torch.arange(64).reshape(1, 1, 8, 8)
    save_file({"samples": levels}, tmp_path / "a.safetensors")
    data, _ = read_data(tmp_path / "a.safetensors", model())
    np.testing.assert_allclose(data, levels / 255 * 2 - 1, atol=1e-6)
    save_file({"samples": levels * 100}, tmp_path / "b.safetensors")
    refused(tmp_path / "b.safetensors", "levels from 0 to 255")
    save_file({"samples": levels > 3}, tmp_path / "c.safetensors")
    refused(tmp_path / "c.safetensors", "torch.bool")


@pytest.mark.parametrize(
    "values",
    [np.zeros((1, 1, 8, 8), bool), np.zeros((1, 1, 8, 8), complex), np.array(["a"] * 64).reshape(1, 1, 8, 8)],
    ids=["bool", "complex", "text"],
)
def test_arrays_of_other_things(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", values)
    refused(tmp_path / "a.npy", "real numbers are required")


def npy(header: str, body: bytes = b"") -> bytes:
    """An .npy file with a header of one's own."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + body


class Canary:
    """Unpickling it would leave a trace."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("canary",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


ARRAYS: list[tuple[str, bytes, str]] = [
    ("a.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 1, 8, 8), }"), "not a readable"),
    (
        "a.npy",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 1, 8, 8), }", b"x" * 512),
        "not a readable|this model requires",
    ),
    (
        "a.npy",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1," * 80 + "), }", b"x" * 8),
        "not a readable",
    ),
    (
        "a.npy",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 30 + "), }", b"x" * 4),
        "30 dimensions",
    ),
    ("a.npy", npy("(" * 5000 + ")" * 5000), "not a readable"),
    ("a.npy", npy(" " * 1_000_000), "not a readable"),
    (
        "a.npy",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 1, 8, 8), }"),
        "not a readable|this model requires",
    ),
    ("a.npy", pickled(), "not a readable|real numbers"),
    ("a.npy", b"", "not a readable"),
    ("a.npy", b"\x80\x04K\x01.", "not a readable"),
    ("a.npy", b"PK\x03\x04", "not a readable"),
    ("a.npz", b"PK\x03\x04", "is not a folder or file of pictures"),
    ("a.safetensors", b"", "not a readable"),
    ("a.safetensors", struct.pack("<Q", 2**60) + b"{}", "not a readable"),
    ("a.safetensors", struct.pack("<Q", 2) + b"{}", "holds nothing"),
    ("a.safetensors", struct.pack("<Q", 100_000) + b"[" * 100_000, "not a readable"),
    ("a.xyz", b"", "is not a folder or file of pictures"),
]


@pytest.mark.parametrize(("name", "content", "match"), ARRAYS, ids=range(len(ARRAYS)))
def test_hostile_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, match: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, match)
    assert not (tmp_path / "canary").exists()


def test_numbers_that_are_none(tmp_path: Path) -> None:
    for value in (np.nan, np.inf):
        np.save(tmp_path / "a.npy", np.full((1, 1, 8, 8), value, np.float32))
        data, _ = read_data(tmp_path / "a.npy", model())
        with pytest.raises(UsageError, match="data contain NaN or infinity"):
            sds.encode(model(), data, "heun", steps=2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.safetensors"])
def test_fifos_and_devices_do_not_hang(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "not a regular file")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    refused(tmp_path / name, "not a regular file")
    if name == "a.png":
        refused(tmp_path, "not a regular file")


def test_names_that_cannot_be(tmp_path: Path) -> None:
    for name in ("x" * 5000, "a\0b", "", "no/such"):
        with pytest.raises(UsageError):
            read_data(str(tmp_path / name) if name else "no-such", model())


NAMES = [b"caf\xe9.png", b"cost $5 and $x_{1.png", b"a [bold]b[bold].png", b"esc\x1b[31mred.png", b"new\nline.png"]


@pytest.mark.parametrize("name", mostly_slow(NAMES, keep=[b"caf\xe9.png", b"esc\x1b[31mred.png"]), ids=repr)
@pytest.mark.parametrize("whole", [True, False], ids=["file", "folder"])
def test_strange_names_go_through_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: bytes, whole: bool
) -> None:
    """Names that are no UTF-8, no mathematics for matplotlib, no markup for rich and no orders for the terminal."""
    folder = os.path.join(os.fsencode(tmp_path), b"data")
    os.mkdir(folder)
    with open(os.path.join(folder, name), "wb") as file:
        Image.new("L", (28, 28), 40).save(file, "PNG")
    data = os.fsdecode(os.path.join(folder, name) if whole else folder)
    words = ["likelihood", "fashion-mnist", data, "--sampler", "euler", "--steps", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main(words)
    written = capfd.readouterr()
    assert caught.value.code == 0, written.err
    assert "\x1b" not in written.out + written.err
    assert (tmp_path / "out" / "likelihood.png").stat().st_size > 0
    lines = (tmp_path / "out" / "likelihood.csv").read_text(encoding="utf-8")
    assert {b"caf\xe9.png": "caf\\xe9.png", b"esc\x1b[31mred.png": "esc\\x1b[31mred.png"}.get(name, "") in lines
    with pytest.raises(SystemExit) as caught:
        main(["encode", "fashion-mnist", data, "--sampler", "euler", "--steps", "1", "--out", str(tmp_path / "out")])
    assert caught.value.code == 0, capfd.readouterr().err


@pytest.mark.slow
def test_giant_files_in_little_memory(tmp_path: Path) -> None:
    """With 1.5 GB of address space beyond what importing takes, a file that claims to hold more is refused."""
    (tmp_path / "a.npy").write_bytes(ARRAYS[0][1])
    (tmp_path / "b.png").write_bytes(bomb(13_000, 13_000))
    code = """
import json, resource, sys
from sdesamplers.datasets import read_data
import sdesamplers as sds
model = sds.FunctionModel(lambda x, t: x, sds.VP(), "epsilon", (1, 8, 8), data_range=(-1, 1))
import PIL.PngImagePlugin, PIL.Image; PIL.Image.init()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 400 * 2**20,) * 2)
said = []
for name in sys.argv[1:]:
    try:
        read_data(name, model)
    except sds.UsageError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    files = [str(tmp_path / "a.npy"), str(tmp_path / "b.png")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 2
