"""A process that has sampled may fork: its children do not inherit the threads, only the belief in them."""

from __future__ import annotations

import os
from functools import cache

import torch


@cache
def prepare_for_forks() -> None:
    """Let the children of this process run networks on one thread each, as the workers of torch's data loaders do.

    OpenMP's threads do not survive a fork, and the first network call that counts on them waits for ever.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(after_in_child=_on_one_thread)


def _on_one_thread() -> None:
    torch.set_num_threads(1)
