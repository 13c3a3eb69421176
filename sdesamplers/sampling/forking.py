"""Thread settings for forks of a process that has sampled: OpenMP threads do not survive a fork."""

from __future__ import annotations

import os
from functools import cache

import torch


@cache
def prepare_for_forks() -> None:
    """Make forked children of this process run networks on one thread each, as the workers of torch's data loaders do.

    OpenMP's threads do not survive a fork, and the first network call that uses them would wait forever.
    """
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_on_one_thread)


def _on_one_thread() -> None:
    torch.set_num_threads(1)
