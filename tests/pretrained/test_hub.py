"""Downloads from a Hub on 127.0.0.1: caching, pinning, offline work, and every failure in one line."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from hub_server import TOKEN, Break, HubServer, Repo
from huggingface_hub import constants, file_download
from tiny_models import WEIGHTS, save_pipeline, tiny_unet

import sdesamplers as sds
from sdesamplers.cli import main
from sdesamplers.errors import ModelError
from sdesamplers.pretrained.hub_files import HubAccess

FILE = f"unet/{WEIGHTS}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pipelines that differ in their weights."""
    base = tmp_path_factory.mktemp("folders")
    return [save_pipeline(base / str(seed), DDPMScheduler(), tiny_unet(seed)) for seed in (0, 1)]


@pytest.fixture
def repo(hub: HubServer, folders: list[Path]) -> Repo:
    """The repository `me/tiny`, with one commit."""
    made = hub.repo("me/tiny")
    made.commit_folder(folders[0])
    return made


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """`sds.load` with a cache of the test's own."""

    def load_cached(source: str = "me/tiny", **options: Any) -> Any:
        return sds.load(source, cache_dir=tmp_path / "cache", **options)

    return load_cached


def first_weight(model: Any) -> torch.Tensor:
    """A tensor to tell two networks apart."""
    return model.unet.state_dict()["conv_in.weight"]


def is_seed(model: Any, seed: int) -> bool:
    """Whether a model has the weights of `tiny_unet(seed)`."""
    return torch.equal(first_weight(model), tiny_unet(seed).state_dict()["conv_in.weight"])


def refusal(load: Any, source: str = "me/tiny", **options: Any) -> str:
    """The message of a failure, which must be a ModelError in one line that names the repository."""
    with pytest.raises(ModelError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert source in message or "/cache/" in message
    return message


# Downloading, caching, pinning


def test_download_and_sample(hub: HubServer, repo: Repo, load: Any) -> None:
    model = load()
    assert is_seed(model, 0)
    assert (model.name, model.revision) == ("me/tiny", repo.refs["main"])
    result = sds.sample(model, "ddim", steps=2, num_samples=2)
    assert result.samples.shape == (2, 1, 8, 8)
    assert torch.isfinite(result.samples).all()
    assert result.revision == repo.refs["main"]
    assert len(hub.downloads(WEIGHTS)) == 1


def test_only_what_a_unet_pipeline_needs_is_downloaded(hub: HubServer, folders: list[Path], load: Any) -> None:
    extra = {"README.md": b"x", "sample.png": b"x", "unet/flax_model.msgpack": b"x", "unet/pytorch_model.bin": b"x"}
    extra |= {"unet/diffusion_pytorch_model.bin": b"x", "unet/diffusion_pytorch_model.fp16.safetensors": b"x"}
    files = {p.relative_to(folders[0]).as_posix(): p.read_bytes() for p in folders[0].rglob("*") if p.is_file()}
    hub.repo("me/tiny").commit({**files, **extra})
    assert is_seed(load(), 0)
    assert sorted(r.path for r in hub.downloads()) == sorted(files)


def test_a_second_load_downloads_nothing(hub: HubServer, repo: Repo, load: Any) -> None:
    load()
    before = len(hub.downloads())
    assert is_seed(load(), 0)
    assert len(hub.downloads()) == before


def test_a_revision_gives_its_own_weights(hub: HubServer, repo: Repo, folders: list[Path], load: Any) -> None:
    old = repo.refs["main"]
    repo.refs["v1"] = old
    new = repo.commit_folder(folders[1])
    assert new != old
    for revision, commit, seed in (("main", new, 1), (old, old, 0), ("v1", old, 0), (new, new, 1), (None, new, 1)):
        model = load(revision=revision)
        assert model.revision == commit
        assert is_seed(model, seed)
    assert len(hub.downloads(WEIGHTS)) == 2


def test_a_hash_stays_when_main_moves(hub: HubServer, repo: Repo, folders: list[Path], load: Any) -> None:
    pinned = load().revision
    moved = repo.commit_folder(folders[1])
    before = len(hub.requests)
    assert is_seed(load(revision=pinned), 0)
    assert len(hub.requests) == before  # a hash that is in the cache asks nobody
    latest = load()
    assert latest.revision == moved
    assert is_seed(latest, 1)


def test_subfolder_and_variant(hub: HubServer, folders: list[Path], tmp_path: Path, load: Any) -> None:
    save_pipeline(tmp_path / "repo" / "inner")
    tiny_unet(1).half().save_pretrained(tmp_path / "repo" / "inner" / "unet", variant="fp16")
    hub.repo("me/nested").commit_folder(tmp_path / "repo")
    model = load("me/nested", subfolder="inner", variant="fp16")
    assert torch.equal(first_weight(model), tiny_unet(1).half().float().state_dict()["conv_in.weight"])
    assert [r.path for r in hub.downloads(".safetensors")] == ["inner/unet/diffusion_pytorch_model.fp16.safetensors"]
    assert "'nowhere'" in refusal(load, "me/nested", subfolder="nowhere")


def test_a_network_alone_finds_the_scheduler_beside_it(hub: HubServer, tmp_path: Path, load: Any) -> None:
    folder = save_pipeline(tmp_path / "repo", DDPMScheduler(num_train_timesteps=77))
    hub.repo("me/tiny").commit_folder(folder)
    assert load(subfolder="unet").process.t_max == 76


def test_the_flat_layout_of_early_repositories(hub: HubServer, folders: list[Path], load: Any) -> None:
    hub.repo("me/flat").commit({p.name: p.read_bytes() for p in folders[1].rglob("*") if p.is_file()})
    assert is_seed(load("me/flat"), 1)


def test_a_registered_name_with_a_pinned_revision(
    hub: HubServer, repo: Repo, folders: list[Path], tmp_path: Path, load: Any
) -> None:
    old = repo.refs["main"]
    repo.commit_folder(folders[1])
    catalogue = tmp_path / "registry.yaml"
    catalogue.write_text(f'models:\n  mine: {{repo: me/tiny, revision: "{old}"}}\n')
    sds.use_registry(catalogue)
    try:
        model = load("mine")
        assert (model.name, model.revision) == ("mine", old)
        assert is_seed(model, 0)
        assert is_seed(load("mine", revision="main"), 1)
    finally:
        sds.use_registry(None)


def test_a_private_repository_opens_with_its_token(hub: HubServer, folders: list[Path], load: Any) -> None:
    hub.repo("me/private", private=True).commit_folder(folders[0])
    hub.repo("me/gated", gated=True).commit_folder(folders[1])
    assert is_seed(load("me/private", token=TOKEN), 0)
    assert is_seed(load("me/gated", token=TOKEN), 1)
    weights = hub.downloads(WEIGHTS)
    assert weights
    assert not any(r.authorized for r in weights)  # the token does not go to the storage host


# Offline


def test_offline_after_a_download(hub: HubServer, repo: Repo, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = load().revision
    hub.stop()
    for options in ({}, {"local_files_only": True}, {"revision": commit}, {"revision": "main"}):
        model = load(**options)
        assert model.revision == commit
        assert is_seed(model, 0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load().revision == commit
    assert "offline mode is on" in refusal(load, revision="v9")
    assert "offline mode is on" in refusal(load, "me/other")


def test_not_in_the_cache_and_nobody_to_ask(hub: HubServer, repo: Repo, load: Any) -> None:
    assert "offline mode is on" in refusal(load, local_files_only=True)
    hub.stop()
    assert "the Hub cannot be reached" in refusal(load)


def test_a_cache_that_lacks_a_file(hub: HubServer, repo: Repo, load: Any, tmp_path: Path) -> None:
    load()
    next((tmp_path / "cache").rglob(f"snapshots/*/{FILE}")).unlink()
    assert "not complete in the local cache" in refusal(load, local_files_only=True)
    assert is_seed(load(), 0)  # and online it is put back


# Failures


def test_an_unknown_repository(hub: HubServer, load: Any) -> None:
    assert "no such repository" in refusal(load, "me/unknown")
    assert "no such repository" in refusal(load, "me/unknown", token=TOKEN)


def test_a_pickle_does_not_turn_anonymous_access_into_a_login():
    assert pickle.loads(pickle.dumps(HubAccess(token=False))).token is False
    assert pickle.loads(pickle.dumps(HubAccess(token=TOKEN))).token is None


def test_tables_named_in_the_registry_are_fetched_with_the_access_of_load(
    hub: HubServer, repo: Repo, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token, the cache and offline mode are those of `load`; a copy has them, and a pickle has no token."""
    table = sds.SolverTable([1.5, 0.7, 0.0], [[0.0, 0.7, -0.7], [0.0, 0.75, 0.1, -0.6]])
    table.save(tmp_path / "tables")
    hub.repo("me/tables", private=True).commit_folder(tmp_path / "tables")
    entry = f"models: {{digits: {{repo: me/tiny, revision: {repo.refs['main']}, tables: 'hf://me/tables@main'}}}}"
    (tmp_path / "registry.yaml").write_text(entry)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    sds.use_registry(tmp_path / "registry.yaml")
    try:
        model, without = load("digits", token=TOKEN), load("digits")
        stored = pickle.loads(pickle.dumps(model.process))
        assert TOKEN not in repr(vars(model.process))
        assert TOKEN.encode() not in pickle.dumps(model.process)
        assert copy.deepcopy(model.process).table_access.token == TOKEN
        assert (stored.table_access.token, stored.table_access.cache_dir) == (None, tmp_path / "cache")
        with pytest.raises(ModelError, match=r"me/tables.*private"):
            sds.sample(without, "tuned", nfe=2)
        assert not hub.downloads("nfe-2.json")  # not before they are needed
        found = sds.sample(model, "tuned", nfe=2, num_samples=2, seed=1).samples
        assert torch.equal(found, sds.sample(model, table, num_samples=2, seed=1).samples)
        assert not (tmp_path / "elsewhere").exists()
        offline, before = load("digits", local_files_only=True), len(hub.requests)
        assert torch.equal(sds.sample(offline, "tuned", nfe=2, num_samples=2, seed=1).samples, found)
        assert len(hub.requests) == before
    finally:
        sds.use_registry(None)


def test_a_private_repository(hub: HubServer, folders: list[Path], load: Any) -> None:
    hub.repo("me/private", private=True).commit_folder(folders[0])
    assert "private" in refusal(load, "me/private")


def test_a_gated_repository(hub: HubServer, folders: list[Path], load: Any) -> None:
    hub.repo("me/gated", gated=True).commit_folder(folders[0])
    assert "gated" in refusal(load, "me/gated")


def test_a_token_that_is_not_accepted(hub: HubServer, repo: Repo, load: Any) -> None:
    assert "does not accept the token" in refusal(load, token="hf_badtoken")


def test_a_missing_revision(hub: HubServer, repo: Repo, load: Any) -> None:
    assert "no revision 'v9'" in refusal(load, revision="v9")
    assert "no revision" in refusal(load, revision="0" * 40)


def test_what_is_not_supported_is_refused_before_its_weights_are_downloaded(hub: HubServer, load: Any) -> None:
    parts = b'{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    hub.repo("me/other").commit({"model_index.json": parts, "unet/config.json": b"{}", FILE: b"x" * 1000})
    assert "StableDiffusionPipeline" in refusal(load, "me/other")
    assert {r.path for r in hub.downloads()} == {"model_index.json", "unet/config.json"}


def test_a_server_error(hub: HubServer, repo: Repo, load: Any) -> None:
    hub.fail_with = 503
    assert "HTTP status 503" in refusal(load)


def test_a_repository_of_something_else(hub: HubServer, load: Any) -> None:
    hub.repo("me/text").commit({"README.md": b"nothing here", "model.safetensors": b"x"})
    assert "no model_index.json or config.json" in refusal(load, "me/text")


@pytest.mark.parametrize("keep", [0, 1000])
def test_truncated_weights_in_the_repository(hub: HubServer, folders: list[Path], load: Any, keep: int) -> None:
    files = {p.relative_to(folders[0]).as_posix(): p.read_bytes() for p in folders[0].rglob("*") if p.is_file()}
    hub.repo("me/tiny").commit({**files, FILE: files[FILE][:keep]})
    assert "truncated or corrupt" in refusal(load)


@pytest.mark.parametrize("name", ["me/ti ny", "a/b/c", "me/", "/me", "me/tiny?", "me//tiny", "me/..", "-"])
def test_names_that_no_repository_can_have(hub: HubServer, load: Any, name: str) -> None:
    with pytest.raises(sds.SdesamplersError) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    assert not hub.requests


# Broken connections


def test_a_connection_that_breaks_is_said_in_one_line_and_a_second_call_finishes(
    hub: HubServer, repo: Repo, load: Any, tmp_path: Path
) -> None:
    hub.breaks[FILE] = Break(after=60_000)
    assert "was interrupted" in refusal(load)
    finished = {r.path for r in hub.downloads()} - {FILE}
    before = len(hub.downloads())
    assert is_seed(load(), 0)
    again = [r.path for r in hub.downloads()[before:]]
    assert FILE in again
    assert set(again) <= {FILE, *(set(repo.commits[repo.refs["main"]]) - finished)}  # finished files are kept
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_connection_closed_early_is_resumed_within_the_call(
    hub: HubServer, repo: Repo, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is resumed is whole chunks
    monkeypatch.setattr(file_download, "time", SimpleNamespace(time=time.time, sleep=lambda seconds: None))
    hub.breaks[FILE] = Break(after=60_000, reset=False)
    assert is_seed(load(), 0)
    assert [r.range for r in hub.downloads(WEIGHTS)] == [None, "bytes=60000-"]


# Pickles


def test_pickled_weights_are_not_even_downloaded_unless_asked_for(hub: HubServer, tmp_path: Path, load: Any) -> None:
    folder = save_pipeline(tmp_path / "pickled")
    (folder / FILE).unlink()
    tiny_unet().save_pretrained(folder / "unet", safe_serialization=False)
    hub.repo("me/pickled").commit_folder(folder)
    message = refusal(load, "me/pickled")
    assert "no weights diffusion_pytorch_model.safetensors" in message
    assert "allow_pickle=True" in message
    assert not hub.downloads(".bin")
    assert is_seed(load("me/pickled", allow_pickle=True), 0)
    assert len(hub.downloads(".bin")) == 1


# The command line, in a process of its own


def run(hub: HubServer, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a client of the Hub."""
    return subprocess.run(
        [sys.executable, "-m", "sdesamplers", *arguments],
        env={**hub.environment(home), **environment},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_the_command_line_downloads_and_then_works_offline(hub: HubServer, repo: Repo, tmp_path: Path) -> None:
    words = ("sample", "me/tiny", "--sampler", "ddim", "--steps", "2", "-n", "2", "--quiet", "--json")
    online = run(hub, tmp_path, *words, "--out", "online")
    assert online.returncode == 0, online.stderr
    assert repo.refs["main"] in online.stdout
    hub.stop()
    offline = run(hub, tmp_path, *words, "--out", "offline", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    pictures = [(tmp_path / name / "grid.png").read_bytes() for name in ("online", "offline")]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("me/unknown",), "no such repository"),
        (("me/gated",), "gated"),
        (("me/private",), "private"),
        (("me/tiny", "--revision", "v9"), "no revision 'v9'"),
        (("me/tiny", "--local-files-only"), "not complete in the local cache, and offline mode is on"),
        (("me/tiny", "--token", "hf_badtoken"), "does not accept the token"),
        (("me/corrupt",), "truncated or corrupt"),
        (("me/broken",), "was interrupted"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_failures_on_the_command_line(
    hub: HubServer,
    repo: Repo,
    folders: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    expected: str,
) -> None:
    files = dict(repo.commits[repo.refs["main"]])
    hub.repo("me/gated", gated=True).commit(files)
    hub.repo("me/private", private=True).commit(files)
    hub.repo("me/corrupt").commit({**files, FILE: files[FILE][:3000]})
    hub.repo("me/broken").commit(files)
    if words == ("me/broken",):
        hub.breaks[FILE] = Break(after=60_000)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main(["sample", *words, "--steps", "2", "--cache-dir", str(tmp_path / "cache"), "--out", str(out)])
    assert caught.value.code == 1
    written = capsys.readouterr()
    assert written.out == ""
    lines = [line for line in written.err.splitlines() if line and "Fetching" not in line]  # the Hub's progress bar
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert not out.exists()
