"""Untrusted text made safe to print; see `sdesamplers/text.py`, which the folders below this one use too."""

from __future__ import annotations

from ..text import one_line as one_line
from ..text import printable as printable
