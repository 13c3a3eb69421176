"""Untrusted text made safe to print, as `sdesamplers/text.py` does for the folders below; data made fit for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..text import one_line as one_line
from ..text import printable as printable


def without_nan(data: Any) -> Any:
    """Plain data with None for every float that is not finite."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: without_nan(value) for key, value in data.items()}
    return [without_nan(value) for value in data] if isinstance(data, list | tuple) else data
