"""Seeded random input of every door: each is right or refused in a line; nothing hangs, and no traceback is shown."""

from __future__ import annotations

import random
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import save_pipeline

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.errors import SdesamplersError
from sdesamplers.io.datasets import read_data
from sdesamplers.registry.catalogue import SHIPPED, read

pytestmark = pytest.mark.slow
SECONDS = 20.0
"""For one input, on a busy machine."""


def spoilt(content: bytes, chance: random.Random) -> bytes:
    """A file with bytes flipped, left out, doubled or cut off."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(made) + 1)
        kind = chance.randrange(4)
        if kind == 0 and place < len(made):
            made[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del made[place : place + chance.randint(1, 9)]
        elif kind == 2:
            made[place:place] = made[place : place + 20]
        elif chance.random() < 0.2:
            del made[place:]
    return bytes(made)


def tried(run, name: str) -> bool:
    """Whether an input was taken; where it was not, it was refused in one line in bounded time."""
    began = time.monotonic()
    try:
        run()
        return True
    except SdesamplersError as error:
        message = str(error)
    finally:
        assert time.monotonic() - began < SECONDS, name
    assert "\n" not in message, name
    return False


def test_registry_files(tmp_path: Path) -> None:
    chance, content, file = random.Random(1), SHIPPED.read_bytes()[:6000], tmp_path / "r.yaml"
    taken = 0
    for k in range(300):
        file.write_bytes(spoilt(content, chance))
        taken += tried(partial(read, file, allow_plugins=False), f"registry file {k}")
    assert taken < 300


def test_pictures_and_arrays(tmp_path: Path) -> None:
    chance = random.Random(2)
    model = sds.FunctionModel(lambda x, t: x, sds.VP(), "epsilon", (1, 8, 8), data_range=(-1.0, 1.0))
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for ending in ("png", "jpg", "bmp", "webp", "tif", "npy"):
        file = tmp_path / f"a.{ending}"
        np.save(file, np.zeros((1, 1, 8, 8), np.uint8)) if ending == "npy" else picture.save(file)
        content = file.read_bytes()
        assert read_data(file, model)[0].shape == (1, 1, 8, 8)
        for k in range(120):
            file.write_bytes(spoilt(content, chance))
            tried(partial(read_data, file, model), f"{ending} {k}")


def test_model_folders(tmp_path: Path) -> None:
    chance = random.Random(3)
    whole = save_pipeline(tmp_path / "whole")
    names = [file.relative_to(whole) for file in sorted(whole.rglob("*")) if file.is_file()]
    refused = 0
    for k in range(60):
        folder = Path(shutil.copytree(whole, tmp_path / "copy"))
        file = folder / chance.choice(names)
        file.write_bytes(spoilt(file.read_bytes(), chance))
        refused += not tried(partial(sds.load, folder, device="cpu"), f"{file} {k}")
        shutil.rmtree(folder)
    assert refused > 10


WORDS = (
    "list",
    "info",
    "heun",
    "models",
    "--json",
    "--nope",
    "-h",
    "[/b]",
    "\x1b[1m",
    "",
    "0",
    "-1",
    "karras",
    "é",
    "\udcff",
)


def test_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(4)
    for k in range(150):
        words = [chance.choice(WORDS) for _ in range(chance.randint(0, 5))]
        began = time.monotonic()
        with pytest.raises(SystemExit) as caught:
            main(words)
        said = capsys.readouterr()
        assert caught.value.code in (0, 1, 2), words
        assert time.monotonic() - began < SECONDS, words
        assert "Traceback" not in said.err, (k, words)
        assert "a bug in" not in said.err, (k, words, said.err)
        assert "\x1b" not in said.out + said.err, words
