"""Libraries that tests compare with if they are installed, as benchmarks/requirements.txt installs them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def k_diffusion(module: str = "sampling") -> Any:
    """A module of k-diffusion; the test is skipped if it is not installed."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        importlib.import_module("peers.k_diffusion_peer")  # loads the package without its training dependencies
        return importlib.import_module(f"k_diffusion.{module}")
    except ImportError as error:
        pytest.skip(f"k-diffusion is not installed: {error}")
    finally:
        sys.path.remove(str(BENCHMARKS))
