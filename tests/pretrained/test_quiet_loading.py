"""What loading says: nothing that a user cannot act upon, and one sentence about words that a network leaves out."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_pipelines as tiny
import torch
from tiny_models import save_pipeline

import sdesamplers as sds
from sdesamplers.pretrained.quiet import quiet_loading


@pytest.fixture
def remarks() -> Iterator[list[str]]:
    """What diffusers and transformers log meanwhile."""
    found: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    keeping = Keeping()
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).addHandler(keeping)
    yield found
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).removeHandler(keeping)


def loaded(folder: Path, **words: object) -> tuple[sds.Model, list[str]]:
    """A model, and the warnings of loading and asking it."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model = sds.load(folder, device="cpu", **words)  # type: ignore[arg-type]
        sds.sample(model, "euler", steps=1, spacing="trailing")
    return model, [str(warning.message) for warning in found]


def test_a_pipeline_is_loaded_without_deprecated_words(
    tmp_path: Path, remarks: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.BUILDERS["stable-diffusion"]().save_pretrained(tmp_path)
    remarks.clear()
    capfd.readouterr()
    model, found = loaded(tmp_path, prompt="a", dtype="bf16")
    assert (found, remarks, capfd.readouterr().err) == ([], [], "")
    assert model.dtype == torch.bfloat16  # the word was understood


def test_what_a_network_leaves_out_is_said_once(tmp_path: Path, remarks: list[str]) -> None:
    folder = save_pipeline(tmp_path / "pipe")
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "num_head_channels": 4, "resolution": None}))
    _, found = loaded(folder)
    said = [text for text in found if "num_head_channels" in text]
    assert len(said) == 1
    assert "ignores them" in said[0]
    assert "resolution" not in said[0]
    assert not any("num_head_channels" in text for text in remarks)


def test_the_settings_of_their_logs_come_back() -> None:
    from diffusers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    with quiet_loading():
        assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == (logging.ERROR, False)
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before
