"""Shared by every test."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants, hf_api

from sdesamplers.registry import registry

pytest_plugins = ("pytester", "browser", "example_server")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """No fighting over cores under xdist, and the same sums here as in the processes that tests start."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_descriptions():
    """Commands that tests start leave the user's cache alone; tests/registry/test_snapshot.py has its own."""
    os.environ["SDESAMPLERS_NO_CACHE"] = "1"


@pytest.fixture
def no_pickler_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has imported neither cloudpickle nor dill, whatever earlier tests imported."""
    for module in [name for name in sys.modules if name.rpartition(".")[2] in ("cloudpickle", "dill")]:
        monkeypatch.delitem(sys.modules, module)


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """What a test registers ends with it, in whatever order the tests run."""
    whole, local = registry.default_registry(), dict(registry._local)
    yield
    if registry._local != local:  # `whole` may hold what was registered
        registry._local.clear()
        registry._local.update(local)
        whole = None
    registry._default = whole


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Path]:
    """The folder of the benchmarks, whose modules can be imported by their names."""
    folder = Path(__file__).parent.parent / "benchmarks"
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def studies(benchmarks: Path) -> Iterator[Path]:
    """The folder of the studies, whose modules can be imported by their names, as can the benchmarks'."""
    folder = benchmarks.parent / "studies"
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that this process's huggingface_hub talks to."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        yield server
