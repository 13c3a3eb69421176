"""Many samples: the same bytes however they are made, nothing lost, and what is refused."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny_pipelines
import torch
from exact_models import ByClass
from lanes import mostly_slow
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import save_pipeline, tiny_unet
from toy_jobs import content, run, toy, velocity

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.comparison.comparison import find_scorer
from sdesamplers.errors import Cancelled, SdesamplersError, UsageError
from sdesamplers.generation import memory, progress
from sdesamplers.generation import run as generation_run
from sdesamplers.generation.job import JobFolder
from sdesamplers.generation.memory import Meter, batch_size_for, parse_bytes
from sdesamplers.generation.ranks import Ranks, parse_part
from sdesamplers.io.images import to_images
from sdesamplers.pretrained.unets import DiffusersModel
from sdesamplers.sampling.prepared import prepare
from sdesamplers.sampling.request import Conduct, Request

PICTURE = (1, 4, 4)


ALL = ("safetensors", "png", "webdataset", "grid")


def expected(count: int = 23, **words: Any) -> torch.Tensor:
    """The toy's samples by `sample`."""
    words = {"steps": 2, "seed": 5, "batch_size": 3, **words}
    return sds.sample(toy(), "euler-maruyama", num_samples=count, **words).samples


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's job, made without a break, in all formats."""
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder, formats=ALL)
    assert done.made == 23
    return folder


def stopping(after: int) -> tuple[Any, threading.Event]:
    """A toy that asks for a stop at an evaluation."""
    stop, calls = threading.Event(), itertools.count(1)

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if next(calls) == after:
            stop.set()
        return velocity(x, t)

    return toy(function), stop


# The same bytes


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_parts_in_any_order(whole: Path, tmp_path: Path, order: tuple[int, ...]) -> None:
    done = [run(tmp_path, formats=ALL, part=(k, 3), resume=True) for k in order]
    assert [each.manifest is not None for each in done] == [False, False, True]
    assert sum(each.made for each in done) == 23
    assert content(tmp_path) == content(whole)


def test_nothing_is_left_but_the_job(whole: Path) -> None:
    names = set(content(whole))
    shards = range(4)
    records = {f".job/records/{k:05d}.json" for k in shards} | {".job/job.json"}
    pictures = {f"sample-{k:06d}.png" for k in range(23)}
    files = {f"{kind}-{k:05d}-of-00004.{e}" for k in shards for kind, e in
             (("samples", "safetensors"), ("samples", "tar"), ("grid", "png"))}  # fmt: skip
    assert names == records | pictures | files | {"manifest.json"}


def edit(old: str, new: str) -> Callable[[Path], Any]:
    """Change a file's text."""

    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "remade"),
    [
        ("samples-00001-of-00004.safetensors", Path.unlink, 6),
        ("samples-00001-of-00004.safetensors", flip, 6),
        ("samples-00003-of-00004.tar", lambda path: path.write_bytes(path.read_bytes()[:-512]), 5),
        ("sample-000000.png", Path.unlink, 6),
        ("grid-00002-of-00004.png", lambda path: path.write_bytes(b""), 6),
        (".job/records/00001.json", Path.unlink, 6),
        (".job/records/00001.json", edit('"total": 12', '"total": 13'), 6),
        (".job/records/00001.json", edit('"count": 6', '"count": 7'), 6),
        (".job/records/00001.json", lambda path: path.write_text("[]"), 6),
        (".job/records/00001.json", lambda path: path.write_text('{"record"'), 6),
        ("manifest.json", Path.unlink, 0),
        ("manifest.json", flip, 0),
        (".job/job.json", Path.unlink, 0),
    ],
)
def test_resuming_mends_damage(
    whole: Path, tmp_path: Path, name: str, damage: Callable[[Path], Any], remade: int
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / name)
    assert content(tmp_path) != content(whole)
    assert run(tmp_path, formats=ALL, resume=True).made == remade
    assert content(tmp_path) == content(whole)


@pytest.mark.parametrize("evaluation", mostly_slow(range(1, 17), keep=[1, 4, 9, 15, 16]))
def test_stopped_at_any_evaluation(whole: Path, tmp_path: Path, evaluation: int) -> None:
    model, stop = stopping(evaluation)  # two evaluations a batch, two batches a shard, eight batches in all
    if evaluation < 15:
        with pytest.raises(Cancelled, match=f"{evaluation // 4} of 4.*resume=True"):
            run(tmp_path, model, formats=ALL, cancel=stop)
        assert not (tmp_path / "manifest.json").exists()
        assert run(tmp_path, formats=ALL, resume=True).made == 23 - 3 * (evaluation // 2)
    elif evaluation == 15:
        with pytest.raises(Cancelled, match="3 of 4"):
            run(tmp_path, model, formats=ALL, cancel=stop)
        assert run(tmp_path, formats=ALL, resume=True).made == 2
    else:  # nothing was left to stop
        assert run(tmp_path, model, formats=ALL, cancel=stop).made == 23
    assert content(tmp_path) == content(whole)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_kept_batch_counts_only_where_it_is_whole(whole: Path, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    model, stop = stopping(3)
    with pytest.raises(Cancelled):
        run(tmp_path, model, formats=ALL, cancel=stop)
    (kept,) = (tmp_path / ".job/batches").iterdir()
    damage(kept)
    assert run(tmp_path, formats=ALL, resume=True).made == 23
    assert content(tmp_path) == content(whole)


def test_nothing_of_another_job_is_taken(tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    run(whole, seed=6)
    model, stop = stopping(7)
    with pytest.raises(Cancelled):
        run(other, model, cancel=stop)
    assert len(list((other / ".job/records").iterdir())) == len(list((other / ".job/batches").iterdir())) == 1
    shutil.copy(whole / ".job/job.json", other / ".job/job.json")
    assert run(other, seed=6, resume=True).made == 23
    assert content(other) == content(whole)


def test_what_a_killed_run_left_half_written_is_removed(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "samples-00001-of-00004.safetensors").unlink()
    litter = [".samples-00001-of-00004.safetensors.a1b2c3d4.safetensors", ".sample-000003.png.________.png",
              ".manifest.json.abcdefgh.json", ".job/records/.00000.json.abcdefgh.json", ".job/job-12-34.json",
              ".job/batches/.00001-000000006.safetensors.abcdefgh.safetensors", ".job/progress/1-of-1-rank3",
              ".job/batches/00002-000000012.safetensors"]  # fmt: skip
    mine = [".notes.txt.abcdefgh.txt", ".samples-00009-of-00004.safetensors.a1b2c3d4.safetensors", "grid.png"]
    (tmp_path / ".job/progress").mkdir()
    for name in [*litter, *mine]:
        (tmp_path / name).write_bytes(b"half")
    run(tmp_path, formats=ALL, resume=True)
    assert content(tmp_path) == {**content(whole), **dict.fromkeys(mine, b"half")}


def test_samples_are_those_of_sample(whole: Path) -> None:
    files = [load_file(path) for path in sorted(whole.glob("*.safetensors"))]
    assert torch.equal(torch.cat([each["samples"] for each in files]), expected())
    assert torch.cat([each["indices"] for each in files]).tolist() == list(range(23))
    assert torch.cat([each["nfe"] for each in files]).tolist() == [2] * 23


@pytest.mark.parametrize(("first", "size", "shard"), [(4, 3, 6), (7, 4, 8), (0, 5, 5)])
def test_sample_i_depends_on_seed_and_i_alone(whole: Path, tmp_path: Path, first: int, size: int, shard: int) -> None:
    words = {"first_index": first, "num_samples": 10, "batch_size": size, "shard_size": shard}
    run(tmp_path, **words, formats=("safetensors", "png"))
    files = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert torch.equal(torch.cat([each["samples"] for each in files]), expected()[first : first + 10])
    assert torch.cat([each["indices"] for each in files]).tolist() == list(range(first, first + 10))
    for k in range(first, first + 10):
        assert (tmp_path / f"sample-{k:06d}.png").read_bytes() == (whole / f"sample-{k:06d}.png").read_bytes()


@pytest.mark.slow
def test_stream_gives_what_sample_gives() -> None:
    network = sds.load("fashion-mnist")
    words: dict[str, Any] = {"nfe": 5, "seed": 3}
    one = sds.sample(network, "fast", num_samples=5, batch_size=2, **words)
    batches = list(sds.stream(network, "fast", num_samples=5, batch_size=2, **words))
    assert [len(batch.samples) for batch in batches] == [2, 2, 1]
    assert [index for batch in batches for index in batch.indices] == one.indices
    assert torch.equal(torch.cat([batch.samples for batch in batches]), one.samples)
    others = torch.cat([batch.samples for batch in sds.stream(network, "fast", num_samples=5, batch_size=3, **words)])
    torch.testing.assert_close(others, one.samples)


def test_stream_in_parts() -> None:
    def numbers(**words: Any) -> list[list[int]]:
        return [batch.indices for batch in sds.stream(toy(), steps=1, num_samples=7, first_index=10, **words)]

    assert numbers(batch_size=3) == [[10, 11, 12], [13, 14, 15], [16]]
    assert numbers(batch_size=3, part=(0, 2)) == [[10, 11, 12], [16]]
    assert numbers(batch_size=3, part=(1, 2)) == [[13, 14, 15]]
    assert numbers(batch_size=3, part=(3, 4)) == []
    assert numbers() == [list(range(10, 17))]  # all fit


def test_stream_records_what_sample_records() -> None:
    (batch,) = sds.stream(toy(), "euler-maruyama", steps=2, num_samples=3, trajectory=True, log_probs=True)
    one = sds.sample(toy(), "euler-maruyama", steps=2, num_samples=3, trajectory=True, log_probs=True)
    assert batch.trajectory is not None
    assert one.trajectory is not None
    assert torch.equal(batch.trajectory.states, one.trajectory.states)
    assert torch.equal(batch.log_probs, one.log_probs)


def test_stream_refuses_before_the_first_batch() -> None:
    for words, message in [
        ({"num_samples": 0}, "num_samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"part": (2, 2), "batch_size": 1}, "from 0 to n - 1"),
        ({"part": (0, 2)}, "part requires batch_size"),
        ({"start": torch.zeros(1, *PICTURE)}, "use sample"),
        ({"progress": True}, "your own loop"),
        ({"condition": 1}, "unconditional"),
    ]:
        with pytest.raises(UsageError, match=message):
            sds.stream(toy(), steps=1, **{"num_samples": 2, **words})


def test_adaptive_samplers(tmp_path: Path) -> None:
    words: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2, "seed": 1}
    one = sds.sample(toy(), "rk45", num_samples=7, batch_size=2, **words)
    job = {"out": tmp_path, "num_samples": 7, "batch_size": 2, "shard_size": 4, **words}
    for k in (1, 0):
        done = sds.generate(toy(), "rk45", **job, part=(k, 2), resume=True)
    files = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert torch.equal(torch.cat([each["samples"] for each in files]), one.samples)
    assert torch.cat([each["nfe"] for each in files]).tolist() == one.nfe_per_sample.tolist()
    assert done.manifest is not None
    assert done.manifest["nfe"]["total"] == one.nfe_per_sample.sum()
    assert done.manifest["nfe"]["largest"] == one.nfe


# Formats


def test_pictures_are_those_of_sample(whole: Path) -> None:
    images = sds.sample(toy(), "euler-maruyama", steps=2, seed=5, num_samples=23, batch_size=3).images
    for k, image in enumerate(images):
        with Image.open(whole / f"sample-{k:06d}.png") as stored:
            assert (stored.mode, stored.size) == ("L", (4, 4))
            assert np.array_equal(np.asarray(stored), np.asarray(image))


def test_tar_members(whole: Path) -> None:
    found = []
    for path in sorted(whole.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                file = tar.extractfile(member)
                assert file is not None
                found.append((member.name, file.read()))
    assert [name for name, _ in found] == [f"{k:09d}.{ending}" for k in range(23) for ending in ("png", "json")]
    for k in range(23):
        assert found[2 * k][1] == (whole / f"sample-{k:06d}.png").read_bytes()
        assert json.loads(found[2 * k + 1][1]) == {"index": k, "seed": 5, "condition": None}


def test_webdataset_reads_the_tars(whole: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset([str(path) for path in sorted(whole.glob("*.tar"))], shardshuffle=False))
    assert [json.loads(each["json"])["index"] for each in found] == list(range(23))


def test_what_is_no_picture_is_an_array(tmp_path: Path) -> None:
    run(tmp_path, toy(shape=(5,)), formats=["webdataset"], shard_size=30)
    with tarfile.open(tmp_path / "samples.tar") as tar:
        names = tar.getnames()
        file = tar.extractfile("000000022.npy")
        assert file is not None
        stored = np.load(io.BytesIO(file.read()))
    assert names[:2] == ["000000000.npy", "000000000.json"]
    assert np.array_equal(stored, sds.sample(toy(shape=(5,)), "em", steps=2, seed=5, num_samples=23).samples[22])


def test_grid(tmp_path: Path) -> None:
    run(tmp_path, formats=("grid", "svg"), shard_size=None)
    root = ElementTree.parse(tmp_path / "grid.svg").getroot()
    [image] = root.iter("{http://www.w3.org/2000/svg}image")
    left, top, width, height = (int(image.get(name, "")) for name in ("x", "y", "width", "height"))
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (int(root.get("width", "")), int(root.get("height", "")))
        pixels = np.asarray(sheet.convert("L"))[top : top + height, left : left + width]
    [line] = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert re.fullmatch(r".+: \S+, 2 steps, \S+, seed 5, samples 0 to 22", line or "")
    first = np.asarray(to_images(expected(1), (-1.0, 1.0))[0])
    scale = ((pixels.shape[1] - 2) // 5 - 2) // 4  # five columns of four pixels, gaps of two
    assert np.array_equal(pixels[2 : 2 + 4 * scale : scale, 2 : 2 + 4 * scale : scale], first)


def test_latents_are_decoded(tmp_path: Path) -> None:
    model = sds.from_pipeline(tiny_pipelines.own("stable-diffusion"), width=16, height=16)
    words: dict[str, Any] = {"steps": 1, "num_samples": 3, "batch_size": 2, "condition": tiny_pipelines.PROMPT}
    sds.generate(model, "ddim", out=tmp_path, formats=("png", "safetensors"), shard_size=2, **words)
    one = sds.sample(model, "ddim", **words)
    latents = [load_file(path)["samples"] for path in sorted(tmp_path.glob("*.safetensors"))]
    assert torch.equal(torch.cat(latents), one.samples)
    for k, image in enumerate(one.images):
        with Image.open(tmp_path / f"sample-{k:06d}.png") as stored:
            assert np.array_equal(np.asarray(stored), np.asarray(image))


# The manifest


def test_manifest(whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    recipe = sds.sample(toy(), "euler-maruyama", steps=2, num_samples=1).recipe
    assert manifest["recipe"] == json.loads(json.dumps(recipe.as_dict()))
    assert (manifest["seed"], manifest["num_samples"], manifest["first_index"]) == (5, 23, 0)
    assert (manifest["batch_size"], manifest["shard_size"], manifest["formats"]) == (3, 6, list(ALL))
    assert manifest["nfe"] == {"total": 46, "mean": 2.0, "largest": 2}
    assert manifest["environment"]["sdesamplers"] == sds.__version__
    assert manifest["environment"]["torch"] == torch.__version__
    assert [shard["count"] for shard in manifest["shards"]] == [6, 6, 6, 5]
    for number, shard in enumerate(manifest["shards"]):
        for kind in ("safetensors", "webdataset"):
            file = whole / shard["files"][kind]["name"]
            assert shard["files"][kind]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
            assert shard["files"][kind]["bytes"] == file.stat().st_size
        names = [f"sample-{k:06d}.png" for k in range(6 * number, min(6 * number + 6, 23))]
        sums = "".join(f"{hashlib.sha256((whole / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
        assert shard["files"]["png"]["sha256"] == hashlib.sha256(sums.encode()).hexdigest()
    with safe_open(whole / "samples-00000-of-00004.safetensors", "pt") as file:
        job = json.loads(file.metadata()["sdesamplers"])
    assert job == {key: value for key, value in manifest.items() if key not in ("nfe", "shards")}


def test_manifest_of_a_loaded_model(tmp_path: Path) -> None:
    done = sds.generate("fashion-mnist", "ddim", steps=1, out=tmp_path, num_samples=1)
    assert done.manifest is not None
    model = done.manifest["model"]
    state = sorted(sds.load("fashion-mnist").network.state_dict().items())
    whole = hashlib.sha256()
    for name, value in state:
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode() + value.numpy().tobytes())
    assert model["weights_sha256"] == whole.hexdigest()
    assert (model["name"], model["process"], model["prediction"]) == ("fashion-mnist", "DiscreteVP", "epsilon")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return velocity(x, t) * self.scale.detach() + self.shift


@pytest.mark.parametrize("word", ["scale", "shift"])
def test_one_other_weight_is_another_model(tmp_path: Path, word: str) -> None:
    net = Net()
    run(tmp_path, toy(net), num_samples=2)
    getattr(net, word).data[3] += 1e-7
    with pytest.raises(UsageError, match=r"another job: model\.weights_sha256 is"):
        run(tmp_path, toy(net), num_samples=2, resume=True)


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {},
            "already holds this job, 4 of 4 shards done: continue with resume=True, or start over with overwrite=True",
        ),
        ({"resume": True, "overwrite": True}, "pass one of them, not both"),
        ({"resume": True, "seed": 6}, "seed is 5 there and 6 here"),
        ({"resume": True, "steps": 3}, "recipe.steps is 2 there and 3 here"),
        ({"resume": True, "sampler": "heun"}, "recipe.sampler is euler-maruyama there and heun here"),
        ({"resume": True, "coordinates": "angle"}, "recipe.coordinates is"),
        ({"resume": True, "noise": "brownian"}, "recipe.noise is"),
        ({"resume": True, "num_samples": 24}, "num_samples is 23 there and 24 here"),
        ({"resume": True, "first_index": 1}, "first_index is 0 there and 1 here"),
        ({"resume": True, "shard_size": 12}, "shard_size is 6 there and 12 here"),
        ({"resume": True, "batch_size": 2}, "batch_size is 3 there and 2 here"),
        ({"resume": True, "formats": ("png",)}, "formats is"),
        ({"resume": True, "dtype": torch.float64}, "state_dtype is float32 there and float64 here"),
        ({"resume": True, "model": toy(name="other")}, "model.name is toy there and other here"),
        ({"resume": True, "model": toy(shape=(1, 2, 2))}, "model.shape is"),
        ({"resume": True, "model": toy(data_range=(0.0, 1.0))}, "model.settings.data_range is"),
        ({"shard_size": 7}, "shard_size must be a multiple of batch_size, 3, not 7"),
        ({"formats": ("pgn",)}, "did you mean 'png'"),
        ({"formats": ()}, "one or more of"),
        ({"formats": ("png", "png")}, "without repetition"),
        ({"formats": ("png",), "model": toy(shape=(2,))}, "not pictures of 1, 3 or 4 channels: png cannot hold"),
        ({"trajectory": True}, "does not take trajectory; use stream"),
        ({"log_probs": True}, "does not take log_probs; use stream"),
        ({"callback": print}, "does not take callback; use stream"),
        ({"start_time": 0.5}, "does not take start_time; use sample"),
        ({"part": (3, 3)}, "k from 0 to n - 1"),
        ({"part": (-1, 3)}, "whole number of 0 or more"),
        ({"part": 2}, "the k-th of n parts"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"condition": 3}, "unconditional"),
        ({"json_log": "no/such/folder/log"}, "json_log no/such/folder/log: No such file"),
        ({"overwrite": True, "shard_size": 7}, "must be a multiple"),
    ],
    ids=str,
)
def test_refused(whole: Path, tmp_path: Path, words: dict[str, Any], message: str) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UsageError, match=message):
        run(tmp_path, **{"formats": ALL, **words})
    assert content(tmp_path) == content(whole)


def test_guidance_and_condition_make_another_job(tmp_path: Path) -> None:
    words: dict[str, Any] = {"out": tmp_path, "steps": 2, "num_samples": 4, "batch_size": 2}
    sds.generate(ByClass(), "euler", **words, condition=1)
    with pytest.raises(UsageError, match=r"condition is \[1\] there and \[2\] here"):
        sds.generate(ByClass(), "euler", **words, condition=2, resume=True)
    with pytest.raises(UsageError, match=r"guidance_scale is 1.0 there and 2.0 here"):
        sds.generate(ByClass(), "euler", **words, condition=1, guidance_scale=2.0, resume=True)
    guided = tmp_path / "guided"
    sds.generate(sds.Guided(ByClass(), 3.0), "euler", **{**words, "out": guided}, condition=1)
    with pytest.raises(UsageError, match=r"model.settings.scale is 3.0 there and 4.0 here"):
        sds.generate(sds.Guided(ByClass(), 4.0), "euler", **{**words, "out": guided}, condition=1, resume=True)


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        ({"dtype": "bf16"}, r"model\.dtype"),
        ({"mixed_precision": "bf16"}, r"model\.autocast"),
        ({"round_timesteps": True}, r"model\.settings\.round_timesteps"),
        ({"size": 12}, r"model\.shape"),
    ],
    ids=str,
)
def test_another_way_to_load_is_another_model(tmp_path: Path, words: dict[str, Any], fact: str) -> None:
    folder = str(save_pipeline(tmp_path / "model"))
    job: dict[str, Any] = {"out": tmp_path / "out", "steps": 1, "num_samples": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tiny network is not trained
        sds.generate(sds.load(folder), "ddim", **job)
    with pytest.raises(UsageError, match=f"another job: .*{fact} is"):
        sds.generate(sds.load(folder, **words), "ddim", **job, resume=True)


@pytest.mark.parametrize("text", ["", "8XB", "GB", "-1GB", "nan", "inf", "0"])
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="memory must be given as"):
        parse_bytes(text)


def test_memory_in_words() -> None:
    amounts = {"8GB": 8 * 10**9, "1.5 GiB": 3 * 2**29, "512mib": 2**29, "20kb": 20_000, "1e6": 10**6, "2TB": 2 * 10**12}
    assert {text: parse_bytes(text) for text in amounts} == amounts


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "a/b", "1/0", "-1/3", "1/2/3", ""])
def test_parts_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="K/N"):
        parse_part(text)


def test_part_counts_from_one_in_words() -> None:
    assert [parse_part(text) for text in ("1/1", "3/8", "8/8")] == [(0, 1), (2, 8), (7, 8)]


# Overwriting


def test_overwriting_removes_the_jobs_own_files_only(tmp_path: Path) -> None:
    run(tmp_path, formats=ALL)
    mine = {"sample-000023.png": b"1", "samples.safetensors": b"2", "notes/a.txt": b"3"}
    (tmp_path / "notes").mkdir()
    for name, data in mine.items():
        (tmp_path / name).write_bytes(data)
    litter = tmp_path / ".sample-000003.png.abcdefgh.png"
    litter.write_bytes(b"half")
    before = content(tmp_path)
    with pytest.raises(UsageError, match=r"holds samples\.safetensors, .*move it away"):
        run(tmp_path, seed=6, num_samples=2, overwrite=True)
    assert content(tmp_path) == before
    (tmp_path / "samples.safetensors").unlink()
    del mine["samples.safetensors"]
    run(tmp_path, seed=6, num_samples=2, overwrite=True)
    fresh = tmp_path.parent / f"{tmp_path.name}-fresh"
    run(fresh, seed=6, num_samples=2)
    new = {"samples.safetensors": (fresh / "samples.safetensors").read_bytes()}
    assert content(tmp_path) == {**mine, **content(fresh), **new}


def test_overwriting_an_empty_folder(tmp_path: Path) -> None:
    assert run(tmp_path / "new", num_samples=2, overwrite=True).made == 2


def test_resuming_takes_the_sizes_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, part=(0, 2))
    with monkeypatch.context() as patch:
        patch.setattr(memory, "batch_size_for", lambda *_: pytest.fail("sizes are known"))
        run(tmp_path, part=(1, 2), resume=True, batch_size=None, shard_size=None)
    fresh = tmp_path / "fresh"
    run(fresh)
    assert (
        content(fresh).items()
        <= {name.removeprefix("fresh/"): data for name, data in content(tmp_path).items()}.items()
    )


def test_parts_that_begin_at_once_agree_on_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_first(*_: Any) -> int:  # a part with less memory, which claims the folder meanwhile
        run(tmp_path, part=(1, 2), resume=True, shard_size=None)
        return 8

    monkeypatch.setattr(memory, "batch_size_for", other_first)
    done = run(tmp_path, part=(0, 2), resume=True, batch_size=None, shard_size=None)
    assert done.manifest is not None
    assert done.manifest["batch_size"] == 3
    assert torch.equal(
        torch.cat([load_file(path)["samples"] for path in sorted(tmp_path.glob("*.safetensors"))]), expected()
    )


# Memory


def short_of_memory(most: int, error: Callable[[], Exception]) -> Any:
    """A toy for which more than some samples at once are too many."""

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if len(x) > most:
            raise error()
        return velocity(x, t)

    return toy(function)


ERRORS: dict[str, Callable[[], Exception]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "text": lambda: RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "python": MemoryError,
}


@pytest.mark.parametrize("error", mostly_slow(ERRORS, keep=["text"]))
def test_out_of_memory_halves_the_batch(tmp_path: Path, error: str) -> None:
    log = tmp_path / "log"
    words: dict[str, Any] = {"batch_size": 12, "shard_size": 12, "out": tmp_path / "out", "json_log": log}
    with pytest.warns(UserWarning, match="memory ran out") as told:
        done = run(model=short_of_memory(5, ERRORS[error]), **words)
    assert [str(each.message).split(",")[0] for each in told] == [
        f"memory ran out: the batch size is {size} from here on" for size in (6, 3)
    ]
    assert done.manifest is not None
    assert [shard["batch_size"] for shard in done.manifest["shards"]] == [3, 3]
    files = [load_file(path)["samples"] for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert torch.equal(torch.cat(files), expected())
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["batch_size"] for event in events if event["event"] == "out of memory"] == [6, 3]


def test_decoding_may_run_out_of_memory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: Any, samples: torch.Tensor) -> torch.Tensor:
        if len(samples) > 2:
            raise ERRORS["torch"]()
        return -samples

    monkeypatch.setattr(sds.FunctionModel, "decode", decode)
    with pytest.warns(UserWarning, match="memory ran out: the batch size is 1"):
        run(tmp_path, num_samples=4, formats=("png",))
    with Image.open(tmp_path / "sample-000003.png") as stored:
        assert np.array_equal(np.asarray(stored), np.asarray(to_images(-expected(4), (-1.0, 1.0))[3]))


def test_stream_goes_on_with_less_memory() -> None:
    words: dict[str, Any] = {"steps": 2, "seed": 5, "num_samples": 23, "batch_size": 8}
    batches = list(sds.stream(short_of_memory(5, ERRORS["torch"]), "euler-maruyama", **words))
    assert [len(batch.samples) for batch in batches] == [8, 8, 7]
    assert torch.equal(torch.cat([batch.samples for batch in batches]), expected())


def test_one_sample_that_does_not_fit(tmp_path: Path) -> None:
    model = short_of_memory(0, ERRORS["torch"])
    with (
        pytest.warns(UserWarning, match="memory ran out: the batch size is 1"),
        pytest.raises(SdesamplersError, match="out of memory at batch size 1: CUDA out of memory"),
    ):
        run(tmp_path, model)
    with pytest.raises(UsageError, match="one sample of toy needs more memory than there is"):
        run(tmp_path / "found", model, batch_size=None)


def test_other_errors_are_not_taken_for_memory(tmp_path: Path) -> None:
    calls = []

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(tmp_path, toy(function), json_log=tmp_path / "log")
    assert calls == [3, 3]  # the second with the time in another shape; no smaller batch is tried
    last = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert (last["event"], last["error"]) == ("failed", "mat1 and mat2 shapes cannot be multiplied")


def test_meter_counts_what_is_alive() -> None:
    with Meter() as meter:
        a = torch.zeros(1000)
        b = a + 1  # 8000 bytes with a
        b.add_(1)
        view = b.view(10, 100)
        del a
        torch.zeros(100)  # 4400 bytes
        assert meter.peak == 8000
        del b
        c = torch.zeros(2000)  # the view keeps b's 4000
        assert meter.peak == 12000
    assert (view[0, 0], c[0]) == (2, 0)


APPETITE = 10**6
"""Numbers that the hungry model holds at once for each sample, beside which its states are nothing."""


def hungry() -> Any:
    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        first = torch.ones(len(x), APPETITE // 2)
        second = first + 1
        return velocity(x, t) + 0 * second[0, 0]

    return toy(function, name="hungry")


def prepared(model: Any) -> tuple[Any, Any]:
    from sdesamplers.generation.conditions import Conditions

    return prepare(model, Request("euler", 4), Conduct()), Conditions(model, None, 1000)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_peak_is_the_analytic_one(size: int) -> None:
    peak = memory.peak_of(*prepared(hungry()), size)
    # Besides: the state, its noise and bits, the times, the answer, and sums of one number.
    assert 4 * APPETITE * size <= peak <= 4 * (APPETITE + 30 * 16) * size + 1000


FOUND = [(9.9, 1000, 8), (16.9, 1000, 16), (9.9, 7, 7), (9.9, 9, 9), (1.05, 1000, 1), (1.05, 1, 1), (3.3, 2, 2)]


@pytest.mark.parametrize(("samples", "most", "found"), [*FOUND, (1e4, 1000, 64)])
def test_batch_size_found_under_a_limit(samples: float, most: int, found: int) -> None:
    limit = int(samples * 4 * APPETITE * memory.SPARE)
    assert batch_size_for(*prepared(hungry()), limit, most) == found


def test_the_limit_is_kept(tmp_path: Path) -> None:
    limit = 40_000_000
    with Meter() as meter:
        sds.generate(hungry(), "euler", steps=4, out=tmp_path, num_samples=20, memory_limit=limit)
    facts = json.loads((tmp_path / "manifest.json").read_text())
    assert facts["batch_size"] == 4  # of 4 MB each, with a third to spare, as a power of two
    assert meter.peak <= limit


def test_too_little_memory_for_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one sample of hungry needs about 5\.\d+ MB, and the memory limit is 4 MB"):
        run(tmp_path / "out", hungry(), batch_size=None, memory_limit=4_000_000)
    assert not (tmp_path / "out").exists()


# Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_folder_to_go_on_with(whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    before, calls = signal.getsignal(number), itertools.count(1)

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if next(calls) == 9:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # a terminal and a launcher may both send it
        return velocity(x, t)

    with pytest.raises(Cancelled, match=f"stopped by {number.name}: 2 of 4 shards in .* are finished; .*resume=True"):
        run(tmp_path, toy(function), formats=ALL)
    assert signal.getsignal(number) is before
    run(tmp_path, formats=ALL, resume=True)
    assert content(tmp_path) == content(whole)


def test_a_later_sigint_interrupts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_run, "REPEAT_DELAY", -1.0)

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, toy(function))
    assert run(tmp_path, resume=True).made == 23


def test_in_a_thread_signals_are_left_alone(whole: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=run, args=(tmp_path,), kwargs={"formats": ALL})
    thread.start()
    thread.join()
    assert content(tmp_path) == content(whole)


STOPPED = """
import itertools, os, signal, sys
import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.pretrained import unets as diffusers

calls, ask = itertools.count(1), diffusers.DiffusersModel.predict
def predict(self, x, t, condition=None):
    if next(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return ask(self, x, t, condition)
diffusers.DiffusersModel.predict = predict
main(sys.argv[3:])
"""


def test_a_signal_in_this_process_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(save_pipeline(tmp_path / "tiny")), "--sampler", "ddim", "--steps", "2", "-n", "4", "--quiet"]
    words += ["--format", "safetensors", "--batch-size", "2", "--shard-size", "2", "--out", str(tmp_path / "out")]
    calls, ask = itertools.count(1), DiffusersModel.predict

    def predict(self: Any, x: torch.Tensor, t: Any, condition: Any = None) -> Any:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return ask(self, x, t, condition)

    monkeypatch.setattr(DiffusersModel, "predict", predict)
    for more, code, told in (([], 1, "error: stopped by SIGTERM: 1 of 2 shards"), (["--resume"], 0, "")):
        with pytest.raises(SystemExit) as caught:
            main([*words, *more])
        assert int(caught.value.code or 0) == code
        written = capsys.readouterr()
        assert not told or written.out == ""
        lines = [line for line in written.err.splitlines() if "lie far outside" not in line]
        assert len(lines) == bool(told), lines
        assert not told or lines[0].startswith(told)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "call"), [("SIGINT", 5), ("SIGTERM", 4)])
def test_a_signal_is_one_line_and_exit_code_1(tmp_path: Path, name: str, call: int) -> None:
    pipeline = save_pipeline(tmp_path / "tiny")
    words = ["sample", str(pipeline), "--sampler", "ddim", "--steps", "2", "-n", "6", "--format", "safetensors"]
    words += ["--batch-size", "2", "--shard-size", "2", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", STOPPED, name, str(call), *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    told = [line for line in ran.stderr.splitlines() if "lie far outside" not in line]
    assert len(told) == 1, ran.stderr
    assert told[0].startswith(f"error: stopped by {name}: {call // 2} of 3 shards")
    assert "--resume" in told[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tiny network is not trained
        for out, more in (("out", ["--resume"]), ("fresh", [])):
            with pytest.raises(SystemExit) as caught:
                main([*words[:-1], str(tmp_path / out), "--quiet", *more])
            assert not caught.value.code
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_an_error_of_the_model_keeps_what_is_done(tmp_path: Path) -> None:
    calls = itertools.count(1)

    def function(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return velocity(x, t) * (torch.nan if next(calls) == 6 else 1)

    with pytest.raises(sds.errors.NonFiniteError, match=r"not finite at evaluation .* 1 of 4 shards .*resume=True"):
        run(tmp_path, toy(function))
    assert run(tmp_path, resume=True).made == 23 - 6


# The log


def test_log_lines_sum_to_the_job(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for k in (0, 1):
        run(tmp_path / "out", part=(k, 2), resume=True, json_log=log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["rank"] for line in lines} == {0}
    batches = [line for line in lines if line["event"] == "batch"]
    assert sum(line["count"] for line in batches) == 23
    assert sum(line["nfe"] for line in batches) == 46
    rows = sorted(k for line in batches for k in range(line["first"], line["first"] + line["count"]))
    assert rows == list(range(23))
    assert all(line["seconds"] > 0 for line in batches)
    assert sorted(line["shard"] for line in lines if line["event"] == "shard") == [0, 1, 2, 3]
    assert [line["complete"] for line in lines if line["event"] == "end"] == [False, True]
    assert [line["samples"] for line in lines if line["event"] == "begin"] == [12, 11]


# Scores


def pictures_model() -> Any:
    return toy(shape=(1, 28, 28))


def test_scores_are_those_of_the_pictures(tmp_path: Path) -> None:
    scorer = find_scorer("fashion-mnist")
    assert scorer is not None
    words: dict[str, Any] = {"num_samples": 30, "batch_size": 5, "shard_size": 10, "scorer": scorer}
    run(tmp_path / "whole", pictures_model(), formats=("png",), **words)
    for k in (2, 0, 1):
        run(tmp_path / "parts", pictures_model(), formats=("png",), part=(k, 3), resume=True, **words)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    pixels = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "whole").glob("sample-*.png"))]
    score = scorer.score(torch.from_numpy(np.stack(pixels))[:, None] / 127.5 - 1)
    stored = json.loads((tmp_path / "whole/scores.json").read_text())
    assert (stored["count"], stored["scorer"]) == (30, scorer.description)
    assert stored["frechet"] == pytest.approx(score.frechet, rel=1e-5)
    assert stored["sliced_wasserstein"] == pytest.approx(score.sliced_wasserstein, rel=1e-5)


def test_another_scorer_is_another_job(tmp_path: Path) -> None:
    first, other = find_scorer("fashion-mnist"), find_scorer("fashion-mnist")
    assert first is not None
    assert other is not None
    words: dict[str, Any] = {"num_samples": 4, "batch_size": 4, "shard_size": 4}
    run(tmp_path, pictures_model(), scorer=first, **words)
    other.reference = other.reference + 1e-6
    with pytest.raises(UsageError, match=r"scorer\.reference is"):
        run(tmp_path, pictures_model(), scorer=other, resume=True, **words)
    with pytest.raises(UsageError, match="scorer is"):
        run(tmp_path, pictures_model(), resume=True, **words)


def test_a_scorer_that_cannot_look_at_the_samples(tmp_path: Path) -> None:
    scorer = find_scorer("fashion-mnist")
    with pytest.raises(UsageError, match="the scorer cannot process samples of 'toy'"):
        run(tmp_path, toy(shape=(3, 28, 28)), scorer=scorer)
    with pytest.raises(UsageError, match="not pictures"):
        run(tmp_path, toy(shape=(2,)), scorer=scorer)


# Conditions


@pytest.mark.parametrize("condition", [2, [2], np.int64(2), torch.tensor(2), range(7), list(range(7)), np.arange(7)],
                         ids=str)  # fmt: skip
def test_conditions(tmp_path: Path, condition: Any) -> None:
    words: dict[str, Any] = {"steps": 3, "num_samples": 7, "batch_size": 2}
    given = list(range(7)) if not np.isscalar(condition) and len(np.atleast_1d(condition)) == 7 else 2
    one = sds.sample(ByClass(), "euler", condition=given, **words)
    batches = list(sds.stream(ByClass(), "euler", condition=condition, **words))
    assert torch.equal(torch.cat([batch.samples for batch in batches]), one.samples)
    sds.generate(ByClass(), "euler", out=tmp_path, condition=condition, shard_size=8, formats=["webdataset"], **words)
    with tarfile.open(tmp_path / "samples.tar") as tar:
        facts = [json.load(tar.extractfile(f"{k:09d}.json")) for k in range(7)]  # type: ignore[arg-type]
    assert [fact["condition"] for fact in facts] == (given if isinstance(given, list) else [given] * 7)


@pytest.mark.parametrize(("condition", "message"), [([0, 1, 2, 3, 9], "0 to 4"), (9, "0 to 4"), (None, "conditional"),
                                                    ([0, 1], "one for all or 5"), (1.5, "labels")])  # fmt: skip
def test_conditions_refused_before_the_first_sample(tmp_path: Path, condition: Any, message: str) -> None:
    model = sds.load(str(save_pipeline(tmp_path / "model", unet=tiny_unet(num_class_embeds=5))))
    model.predict = lambda *_: pytest.fail("too late")  # type: ignore[method-assign]
    words: dict[str, Any] = {"steps": 1, "num_samples": 5, "batch_size": 1, "condition": condition}
    with pytest.raises(UsageError, match=message):
        sds.generate(model, "ddim", out=tmp_path / "out", **words)
    with pytest.raises(UsageError, match=message):
        sds.stream(model, "ddim", **words)
    assert not (tmp_path / "out").exists()


def test_prompts_and_embeddings(tmp_path: Path) -> None:
    text = sds.from_pipeline(tiny_pipelines.own("stable-diffusion"), width=16, height=16)
    prompts = ["a cat", "two dogs", "a cat"]
    words: dict[str, Any] = {"steps": 1, "num_samples": 3, "batch_size": 2}
    spread = text.condition_for(prompts, 3)
    for condition in (prompts, tuple(prompts), spread):
        one = sds.sample(text, "ddim", condition=prompts, **words).samples
        batches = sds.stream(text, "ddim", condition=condition, **words)
        torch.testing.assert_close(torch.cat([batch.samples for batch in batches]), one)
    sds.generate(text, "ddim", out=tmp_path, condition="a cat", **words)
    with pytest.raises(UsageError, match="condition is"):
        sds.generate(text, "ddim", out=tmp_path, condition="a dog", resume=True, **words)
    images = sds.from_pipeline(tiny_pipelines.own("kandinsky"))
    embeddings = torch.cat([tiny_pipelines.embedding(k) for k in range(3)])
    one = sds.sample(images, "ddim", condition=embeddings, **words).samples
    batches = sds.stream(images, "ddim", condition=embeddings, **words)
    torch.testing.assert_close(torch.cat([batch.samples for batch in batches]), one)
    sds.generate(images, "ddim", out=tmp_path / "images", condition=embeddings, **words)
    with pytest.raises(UsageError, match="condition is"):
        sds.generate(images, "ddim", out=tmp_path / "images", condition=embeddings + 1e-6, resume=True, **words)


def test_the_models_own_prompt_is_part_of_the_job(tmp_path: Path) -> None:
    words: dict[str, Any] = {"steps": 1, "num_samples": 1, "out": tmp_path}
    pipe = tiny_pipelines.own("stable-diffusion")
    sds.generate(sds.from_pipeline(pipe, condition="a cat", width=16, height=16), "ddim", **words)
    with pytest.raises(UsageError, match=r"condition is \['a cat'\] there and \['a dog'\] here"):
        sds.generate(sds.from_pipeline(pipe, condition="a dog", width=16, height=16), "ddim", resume=True, **words)


# Progress


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the bar shows, told at every chance."""
    shown: list[float] = []

    def show(self: Any, label: str, total: int, before: int) -> None:
        self._move, self._total, self._before = shown.append, total, before

    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(progress.Progress, "show", show)
    return shown


@pytest.mark.slow
def test_numbers_never_exceed_the_total(tmp_path: Path, bar: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    advance = progress.Progress.advance
    monkeypatch.setattr(progress.Progress, "advance", lambda self, n: (advance(self, n), told.append(self.made))[0])
    with pytest.warns(UserWarning, match="memory ran out") as warned:
        run(tmp_path, short_of_memory(5, ERRORS["torch"]), batch_size=12, shard_size=12, progress=True)
    assert len(warned) == 2
    assert told == sorted(told)
    assert told[-1] == pytest.approx(23)
    assert bar == pytest.approx([min(number, 23) for number in told])
    assert len(bar) > 8


def test_stale_progress_does_not_count(whole: Path, tmp_path: Path, bar: list[float]) -> None:
    model, stop = stopping(9)
    with pytest.raises(Cancelled):
        run(tmp_path, model, formats=ALL, cancel=stop)
    folder = tmp_path / ".job/progress"
    folder.mkdir()
    (folder / "1-of-1-rank1").write_text("17.000")  # of a process that was killed
    (folder / "2-of-3-rank0").write_text("5.000")
    bar.clear()
    run(tmp_path, formats=ALL, resume=True, progress=True)
    assert bar[0] == 13.5  # two shards are there, and half of a batch of three is made
    assert bar[-1] == pytest.approx(23)
    assert content(tmp_path) == content(whole)


def test_far_samples_are_told_once(tmp_path: Path) -> None:
    model = toy(lambda x, t: -100 * x, clip=False)
    with pytest.warns(UserWarning, match="lie far outside") as told:
        run(tmp_path, model)
    assert len(told) == 1
    with pytest.warns(UserWarning, match="lie far outside") as told:
        assert len(list(sds.stream(model, "euler", steps=2, num_samples=6, batch_size=2))) == 3
    assert len(told) == 1


def test_a_lost_process_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = progress.Progress(tmp_path, "1-of-1", 0)
    with bar:
        assert not bar.others_at_work()
        (tmp_path / "1-of-1-rank1").write_text("3.000")
        (tmp_path / "2-of-2-rank0").write_text("1.000")  # not of this group
        assert bar.others_at_work()
        monkeypatch.setattr(progress, "TIMEOUT", 0.0)
        assert not bar.others_at_work()
    assert [path.name for path in tmp_path.iterdir()] == ["1-of-1-rank1", "2-of-2-rank0"]


def test_no_bar_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    run(tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "euler-maruyama on toy" in shown
    assert "/23" in shown
    assert "samples/s" in shown


def test_processes_that_share_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Ranks, "from_first", lambda self, work: JobFolder(tmp_path, {}) if work.__name__ == "begin" else None
    )
    with pytest.raises(UsageError, match="all processes need one shared folder"):
        run(tmp_path)


def test_alone_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Ranks.here() == Ranks(0, 1)
