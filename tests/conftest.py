"""Shared by every test."""

import pytest
import torch

pytest_plugins = "pytester"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The same arithmetic on every machine, and no fighting over cores under xdist."""
    torch.set_num_threads(1)
