"""`sample` under the types of typed.pyi, which docs/make_stub.py writes: an overload for each built-in sampler."""

from __future__ import annotations

from .calls import sample as sample
