"""Pipeline folders without some of their components: null in model_index.json, in either form, or left out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch

import sdesamplers as sds
from sdesamplers.errors import ModelError

FORMS: dict[str, Any] = {"pair": [None, None], "null": None, "left out": ...}
RUN = {"sampler": "ddim", "steps": 2, "condition": "a red cat", "guidance_scale": 2.0}


def folder_without(pipe: Any, folder: Path, absent: list[str], form: str) -> str:
    """A pipeline's folder without components; `form` is how model_index.json describes it."""
    with tiny.quiet():
        pipe.save_pretrained(folder)
    file = folder / "model_index.json"
    index = {**json.loads(file.read_text()), **dict.fromkeys(absent, FORMS[form])}
    file.write_text(json.dumps({key: value for key, value in index.items() if value is not ...}))
    for key in absent:
        shutil.rmtree(folder / key, ignore_errors=True)
    return str(folder)


def read_back(pipe: Any, folder: Path) -> Any:
    """The pipeline as diffusers loads it.

    Weights from a file lie elsewhere in memory than those of a new network, and on some processors results then differ
    in the last digits.
    """
    with tiny.quiet():
        pipe.save_pretrained(folder)
        return type(pipe).from_pretrained(folder)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("absent", [["text_encoder_3"], ["text_encoder_3", "tokenizer_3"]])
def test_stable_diffusion_3_without_t5_is_the_pipeline_without_t5(tmp_path: Path, absent: list[str], form: str) -> None:
    pipe = read_back(tiny.sd3(), tmp_path / "whole")
    found = sds.sample(sds.load(folder_without(pipe, tmp_path / "part", absent, form), size=16), **RUN).samples
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    model = sds.from_pipeline(pipe, height=16, width=16)
    torch.testing.assert_close(found, sds.sample(model, **RUN).samples)
    embeds = pipe.encode_prompt("a red cat", None, None)[0]
    assert not embeds[:, tiny.TOKENS :].any()  # zeros in place of T5's part, in diffusers itself


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("stable_diffusion", ["safety_checker", "feature_extractor", "image_encoder"]),
        ("sdxl", ["feature_extractor", "image_encoder"]),
        ("sd3", ["feature_extractor", "image_encoder"]),
        ("flux", ["feature_extractor", "image_encoder"]),
    ],
)
def test_components_that_models_do_not_use_may_be_absent(
    tmp_path: Path, name: str, absent: list[str], form: str
) -> None:
    pipe = read_back(getattr(tiny, name)(), tmp_path / "whole")
    found = sds.sample(sds.load(folder_without(pipe, tmp_path / "part", absent, form), size=16), **RUN).samples
    torch.testing.assert_close(found, sds.sample(sds.from_pipeline(pipe, height=16, width=16), **RUN).samples)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "absent", "message"),
    [
        ("sd3", ["text_encoder", "tokenizer"], "lacks text_encoder, tokenizer, which StableDiffusion3Pipeline needs"),
        ("sd3", ["tokenizer_3"], "lacks tokenizer_3, which StableDiffusion3Pipeline needs"),
        ("sd3", ["vae"], "lacks vae, which StableDiffusion3Pipeline needs"),
        ("flux", ["text_encoder_2", "tokenizer_2"], "lacks text_encoder_2, tokenizer_2, which FluxPipeline needs"),
        ("sdxl", ["text_encoder", "tokenizer"], "takes text of width 32, but its text encoders return 16"),
        ("stable_diffusion", ["vae"], "lacks vae, which StableDiffusionPipeline needs"),
    ],
)
def test_components_that_encode_or_decode_are_named(
    tmp_path: Path, name: str, absent: list[str], message: str, form: str
) -> None:
    with pytest.raises(ModelError, match=message):
        sds.load(folder_without(getattr(tiny, name)(), tmp_path, absent, form), size=16)
