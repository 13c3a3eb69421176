"""Nothing that comes with a model is run, and what is not supported is refused before its weights are fetched."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import transformers
from hub_server import HubServer
from lanes import mostly_slow
from tiny_models import save_pipeline

import sdesamplers as sds
from sdesamplers.errors import ModelError
from sdesamplers.pretrained.trust import closed_prompt, read_json

TRAP = """
from pathlib import Path
Path({canary!r}).write_text("ran")
import transformers
class Trap(transformers.PreTrainedTokenizer):
    pass
"""
CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
AUTO = [name for name in dir(transformers) if name.startswith("Auto") and name[4:5].isupper()]
FEW = (
    "LlavaProcessor",
    "CLIPProcessor",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "CLIPImageProcessor",
    "WhisperFeatureExtractor",
    "PreTrainedTokenizerFast",
    "AutoTokenizer",
    "AutoProcessor",
    "AutoImageProcessor",
    "AutoFeatureExtractor",
    "AutoModel",
    "AutoConfig",
)
"""One class of every sort; the slow test takes them all."""


class Yes(io.StringIO):
    """A terminal where the user says yes to everything, which counts how often it was read."""

    def __init__(self) -> None:
        super().__init__("y\n" * 1000)
        self.reads = 0

    def readline(self, *size: Any) -> str:
        self.reads += 1
        return super().readline(*size)

    def read(self, *size: Any) -> str:
        self.reads += 1
        return super().read(*size)


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch) -> Yes:
    """Standard input that says yes."""
    monkeypatch.setattr(sys, "stdin", made := Yes())
    return made


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Stable Diffusion."""
    folder = tmp_path_factory.mktemp("trust") / "sd"
    tiny.BUILDERS["stable-diffusion"]().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(sd: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(sd, tmp_path / "copy"))


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file, which need not be there; None takes a key out."""
    data = {**(json.loads(file.read_text()) if file.exists() else {}), **changes}
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def set_trap(folder: Path, canary: Path, nested: bool = False) -> None:
    """Let every configuration of a folder name a module beside it that leaves a canary when it is run."""
    folder.mkdir(exist_ok=True)
    (folder / "trap.py").write_text(TRAP.format(canary=str(canary)))
    names = {**dict.fromkeys(AUTO, "trap.Trap"), "AutoTokenizer": ["trap.Trap", "trap.Trap"]}
    for name in CONFIGS:
        words = {"auto_map": names}
        edit(folder / name, **({"text_config": [words]} if nested else words))


def refused(folder: Path | str, match: str, **options: Any) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(ModelError, match=match) as caught:
        sds.load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_trap_catches_who_trusts_it(tmp_path: Path, yes: Yes) -> None:
    """What the tests below rely on: transformers runs the module after a yes on the terminal, and asks for it."""
    folder, canary = tmp_path / "t", tmp_path / "canary"
    set_trap(folder, canary)
    with contextlib.suppress(Exception):  # the trap is no whole tokenizer
        transformers.AutoTokenizer.from_pretrained(folder)
    assert yes.reads
    assert canary.exists()


def test_the_prompt_is_closed(tmp_path: Path, yes: Yes) -> None:
    folder, canary = tmp_path / "t", tmp_path / "canary"
    set_trap(folder, canary)
    with closed_prompt():
        for kind in (transformers.AutoTokenizer, transformers.AutoConfig, transformers.AutoImageProcessor):
            with pytest.raises(ValueError, match="custom code"):
                kind.from_pretrained(folder)
    assert not yes.reads
    assert not canary.exists()


@pytest.mark.parametrize("place", ["tokenizer", "text_encoder", "feature_extractor", "vae", "scheduler"])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_configurations_that_name_code_are_refused(
    copy: Path, tmp_path: Path, yes: Yes, place: str, nested: bool
) -> None:
    set_trap(copy / place, tmp_path / "canary", nested)
    if place == "feature_extractor":
        edit(copy / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])
    refused(copy, "auto_map names code")
    assert not yes.reads
    assert not (tmp_path / "canary").exists()


def no_class_runs_code(copy: Path, canary: Path, yes: Yes, names: Any) -> None:
    """Every class in the place of the tokenizer and of the text encoder, with and without the words that name code."""
    for place in ("tokenizer", "text_encoder"):
        set_trap(copy / place, canary)
        for name in names:
            edit(copy / "model_index.json", **{place: ["transformers", name]})
            with pytest.raises(ModelError):
                sds.load(copy)
            assert not canary.exists(), name
            assert not yes.reads, name


@pytest.mark.parametrize("name", FEW)
def test_no_class_of_a_component_runs_code(copy: Path, tmp_path: Path, yes: Yes, name: str) -> None:
    no_class_runs_code(copy, tmp_path / "canary", yes, [name])


@pytest.mark.slow
def test_no_class_that_diffusers_may_load_runs_code(copy: Path, tmp_path: Path, yes: Yes) -> None:
    from transformers.models.auto import (
        feature_extraction_auto,
        image_processing_auto,
        processing_auto,
        tokenization_auto,
    )

    maps = (
        feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES,
        processing_auto.PROCESSOR_MAPPING_NAMES,
        tokenization_auto.TOKENIZER_MAPPING_NAMES,
        image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES,
    )
    names: set[str] = set(AUTO)
    for mapping in maps:
        for value in dict(mapping).values():
            each = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
            names |= {name for name in each if isinstance(name, str)}
    assert len(names) > 150
    no_class_runs_code(copy, tmp_path / "canary", yes, sorted(names))


@pytest.mark.parametrize(
    ("library", "name", "words"),
    [
        ("transformers", "LlavaProcessor", "not a tokenizer"),
        ("transformers", "AutoTokenizer", "not a tokenizer"),
        ("transformers", "NoSuchTokenizer", "lacks"),
        ("trap", "Trap", "code that comes with a model is not run"),
        ("os", "system", "code that comes with a model is not run"),
        ("pipeline_utils", "DiffusionPipeline", "not a tokenizer|code that comes"),
        ("diffusers", "AutoModel", "not a tokenizer"),
        ("stable_diffusion.pipeline_stable_diffusion", "x", "code that comes with a model is not run"),
    ],
)
def test_a_tokenizer_is_a_tokenizer(copy: Path, library: str, name: str, words: str) -> None:
    edit(copy / "model_index.json", tokenizer=[library, name])
    refused(copy, words)


def test_code_in_the_place_of_a_network_of_pixels(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path)
    edit(folder / "model_index.json", unet=["trap", "UNet2DModel"])
    refused(folder, "code that comes with a model is not run")


@pytest.mark.parametrize(
    ("place", "words", "match"),
    [
        ("text_encoder", {"attn_implementation": "somebody/kernel"}, "code from a repository is not run"),
        ("text_encoder", {"transformers_weights": "../../other.safetensors"}, "not a safetensors file in its folder"),
        ("text_encoder", {"transformers_weights": "weights.bin"}, "not a safetensors file in its folder"),
        ("text_encoder", {"custom_generate": "generate.py"}, "names code"),
    ],
)
def test_words_that_lead_elsewhere(copy: Path, place: str, words: dict[str, Any], match: str) -> None:
    edit(copy / place / "config.json", **words)
    refused(copy, match)


def test_adapters_of_other_repositories(copy: Path) -> None:
    (copy / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    refused(copy, "adapters need weights of another repository")


# Indices and pointers


@pytest.mark.parametrize(
    "name", ["w.bin", "pytorch_model.bin", "../w.safetensors", "/etc/w.safetensors", "a/b.safetensors"]
)
@pytest.mark.parametrize("plain", [False, True], ids=["pipeline", "unet"])
def test_an_index_names_safetensors_of_its_folder(copy: Path, tmp_path: Path, plain: bool, name: str) -> None:
    folder = save_pipeline(tmp_path / "plain") if plain else copy
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}}))
    assert repr(name) in refused(folder, "which is not a safetensors file in its folder")
    refused(folder, "which is not a safetensors file", allow_pickle=True)


def test_pieces_that_are_not_there(copy: Path) -> None:
    shutil.rmtree(copy / "unet")
    tiny.unet().save_pretrained(copy / "unet", max_shard_size="40KB")
    pieces = sorted((copy / "unet").glob("*-of-*.safetensors"))
    assert len(pieces) > 1
    sds.load(copy)
    pieces[-1].unlink()
    assert pieces[-1].name in refused(copy, "lacks")


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "tokenizer/tokenizer.json",
        "model_index.json",
    ],
)
def test_a_git_lfs_pointer_is_called_that(copy: Path, name: str) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"
    (copy / name).write_text(pointer)
    assert name in refused(copy, "is a Git LFS pointer, not the file itself; run `git lfs pull`")


def test_so_is_one_in_place_of_a_unets_weights(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(folder, "is a Git LFS pointer")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize(
    "name", ["unet/config.json", "tokenizer/tokenizer_config.json", "vae/config.json", "tokenizer/x"]
)
def test_a_fifo_does_not_hang(copy: Path, name: str) -> None:
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    refused(copy, "not a regular file")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "{", "\ufeff{}", "nan", '"x"'])
def test_broken_configurations(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json: not a"):
        read_json(file)


# Refusals come before weights: a repository whose weights are rubbish, and of which none are fetched


def hub_refuses(hub: HubServer, folder: Path, cache: Path, match: str, **options: Any) -> set[str]:
    """Commit a folder with rubbish for weights, let `load` refuse it, and return what was fetched."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    rubbish = {name: b"rubbish" if name.endswith(".safetensors") else content for name, content in files.items()}
    hub.repo("me/model").commit(rubbish)
    message = refused("me/model", match, cache_dir=cache, **options)
    assert "me/model" in message
    fetched = {request.path for request in hub.downloads()}
    assert not {name for name in fetched if name.endswith((".safetensors", ".bin"))}
    return fetched


def refiner(folder: Path) -> None:
    edit(folder / "unet" / "config.json", projection_class_embeddings_input_dim=5 * 8 + tiny.WIDTH)


def super_resolution(folder: Path) -> None:
    edit(folder / "unet" / "config.json", in_channels=6, out_channels=3)


def set_index(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "model_index.json", **changes)


def set_config(place: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / place / "config.json", **changes)


def set_scheduler(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "scheduler" / "scheduler_config.json", **changes)


def without_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


KL = ["diffusers", "AutoencoderKLTemporalDecoder"]
BEFORE_WEIGHTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("ldm", super_resolution, "6 channels"),
    ("ldm", set_config("unet", num_class_embeds=10), "takes class labels"),
    ("ldm", set_config("vqvae", latent_channels=7), "images besides them"),
    ("sdxl", refiner, "SDXL's refiner"),
    ("stable-diffusion", set_config("unet", in_channels=9), "images besides them"),
    ("stable-diffusion", set_config("unet", in_channels=8), "images besides them"),
    ("stable-diffusion", set_config("unet", in_channels=5), "images besides them"),
    ("stable-diffusion", set_config("unet", in_channels=7, num_class_embeds=1000), "images besides them"),
    ("stable-diffusion", set_config("unet", num_class_embeds=1000), "num_class_embeds"),
    ("stable-diffusion", set_config("unet", class_embed_type="projection"), "class_embed_type"),
    ("stable-diffusion", set_config("unet", addition_embed_type="image"), "addition_embed_type"),
    ("stable-diffusion", set_config("unet", cross_attention_dim=1024), "text of width 1024"),
    ("stable-diffusion", set_config("unet", down_block_types=["NoSuchBlock2D"] * 2), "can be constructed"),
    ("stable-diffusion", set_config("vae", out_channels=6), "not images"),
    ("stable-diffusion", set_index(vae=KL), "AutoencoderKLTemporalDecoder"),
    ("stable-diffusion", set_index(vae=["diffusers", "AutoencoderKLWan"]), "AutoencoderKLWan"),
    ("stable-diffusion", set_index(motion_adapter=["diffusers", "MotionAdapter"]), "supported are"),
    ("stable-diffusion", set_index(_class_name="NoSuchPipeline"), "has no pipeline class"),
    ("stable-diffusion", set_index(_class_name="UNet2DModel"), "has no pipeline class"),
    ("stable-diffusion", set_index(_class_name="KandinskyV22CombinedPipeline"), "several repositories"),
    ("stable-diffusion", set_index(scheduler=None), "lacks scheduler"),
    ("stable-diffusion", set_index(tokenizer=None), "lacks tokenizer"),
    ("stable-diffusion", without_scheduler, "no scheduler_config.json"),
    ("stable-diffusion", set_index(scheduler=["diffusers", "VQDiffusionScheduler"]), "tokens"),
    ("stable-diffusion", set_index(scheduler=["diffusers", "NoSuchScheduler"]), "NoSuchScheduler"),
    ("stable-diffusion", set_scheduler(beta_schedule="no-such"), "configuration is invalid"),
    ("stable-diffusion", set_index(text_encoder=["transformers", "NoSuchModel"]), "supported are"),
    ("stable-diffusion", set_index(unet=["diffusers", "UNetSpatioTemporalConditionModel"]), "supported are"),
    ("stable-diffusion", set_index(text_encoder=None), "supported are"),
    ("flux", set_config("transformer", in_channels=384), "filling"),
    ("flux", set_config("transformer", in_channels=128), "control"),
]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved pipelines of several kinds."""
    base = tmp_path_factory.mktemp("kinds")
    for name in ("ldm", "sdxl", "stable-diffusion", "flux"):
        tiny.BUILDERS[name]().save_pretrained(base / name)
    return {folder.name: folder for folder in base.iterdir()}


@pytest.mark.parametrize(
    ("kind", "spoil", "match"),
    mostly_slow(BEFORE_WEIGHTS, keep=[*BEFORE_WEIGHTS[::3], BEFORE_WEIGHTS[-1]]),
    ids=[f"{k}: {m}" for k, _, m in BEFORE_WEIGHTS],
)
def test_refusals_come_before_weights(
    hub: HubServer, kinds: dict[str, Path], tmp_path: Path, kind: str, spoil: Callable[[Path], None], match: str
) -> None:
    folder = Path(shutil.copytree(kinds[kind], tmp_path / "copy"))
    spoil(folder)
    hub_refuses(hub, folder, tmp_path / "cache", match)


@pytest.mark.parametrize(
    ("place", "changes", "match"),
    [
        ("unet/config.json", {"in_channels": 6}, "6 input channels"),
        ("unet/config.json", {"class_embed_type": "identity"}, "not on labels"),
        ("unet/config.json", {"sample_size": 7}, "multiples of"),
        ("unet/config.json", {"down_block_types": ["NoSuch"] * 2}, "can be constructed"),
        ("unet/config.json", {"block_out_channels": 3}, "block_out_channels"),
        ("model_index.json", {"scheduler": ["diffusers", "KarrasVeScheduler"]}, "not supported"),
        ("model_index.json", {"unet": ["diffusers", "UNet1DModel"]}, "supported are"),
    ],
)
def test_so_they_do_for_unets_of_pixels(
    hub: HubServer, tmp_path: Path, place: str, changes: dict[str, Any], match: str
) -> None:
    folder = save_pipeline(tmp_path / "plain")
    edit(folder / place, **changes)
    hub_refuses(hub, folder, tmp_path / "cache", match)


@pytest.mark.parametrize(
    ("kind", "match"),
    [("ControlNetModel", "ControlNetModel"), ("UNet3DConditionModel", "UNet3DConditionModel"), (None, "class name")],
)
def test_repositories_of_one_network(hub: HubServer, tmp_path: Path, kind: str | None, match: str) -> None:
    (tmp_path / "net").mkdir()
    edit(tmp_path / "net" / "config.json", _class_name=kind, in_channels=4)
    (tmp_path / "net" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    hub_refuses(hub, tmp_path / "net", tmp_path / "cache", match)


def test_code_and_foreign_indices_on_the_hub(hub: HubServer, copy: Path, tmp_path: Path, yes: Yes) -> None:
    set_trap(copy / "tokenizer", tmp_path / "canary")
    fetched = hub_refuses(hub, copy, tmp_path / "cache", "auto_map names code")
    assert not {name for name in fetched if name.endswith(".py")}
    assert not yes.reads
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_an_index_that_names_a_pickle_on_the_hub(hub: HubServer, copy: Path, tmp_path: Path, part: str) -> None:
    stem = "diffusion_pytorch_model" if part == "unet" else "model"
    (copy / part / f"{stem}.safetensors").unlink()
    (copy / part / "w.bin").write_bytes(b"x")
    (copy / part / f"{stem}.safetensors.index.json").write_text('{"weight_map": {"a": "w.bin"}}')
    hub_refuses(hub, copy, tmp_path / "cache", "names 'w.bin', which is not a safetensors file")


def test_weights_that_are_not_there_cost_no_others(hub: HubServer, copy: Path, tmp_path: Path) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    hub_refuses(hub, copy, tmp_path / "cache", "no weights in safetensors for vae")


def test_patterns_of_vocabularies_fetch_no_code(hub: HubServer, copy: Path, tmp_path: Path) -> None:
    traps = ("vocab.py", "vocab.pkl", "vocab.bin", "tokenizer.py", "config.py", "merges.py", "x.model.py")
    for name in traps:
        (copy / "tokenizer" / name).write_text("raise SystemExit")
    files = {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    hub.repo("me/sd").commit(files)
    assert sds.load("me/sd", cache_dir=tmp_path / "cache", device="cpu").name == "me/sd"
    fetched = {request.path for request in hub.downloads()}
    assert {"tokenizer/tokenizer.json", "unet/diffusion_pytorch_model.safetensors"} <= fetched
    assert not {f"tokenizer/{name}" for name in traps} & fetched
