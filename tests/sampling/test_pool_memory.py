"""A pool whose network runs out of memory: fewer rows for a while, and more again later; no GPU is needed."""

from __future__ import annotations

import pytest
import torch

import sdesamplers as sds

MODEL = sds.grid_mixture(sds.VP())


def pool_of(requests: int, steps: int = 400, rows: int = 16) -> sds.Pool:
    pool = sds.Pool(MODEL.process, prediction=MODEL.prediction, max_rows=rows)
    for seed in range(requests):
        shared = {"prediction": MODEL.prediction, "shape": (2,), "dtype": torch.float64}
        pool.add(sds.Stepper(MODEL.process, "ddim", steps=steps, seed=seed, num_samples=1, **shared))
    return pool


def sizes(pool: sds.Pool, batches: int, memory: list[int]) -> list[int]:
    """The numbers of rows of the batches that a network with room for `memory[0]` rows has evaluated."""
    found = []
    while len(found) < batches and (batch := pool.batch()) is not None:
        if len(batch) > memory[0]:
            assert pool.shrink()
            continue
        pool.send(MODEL.predict(batch.x, batch.times))
        found.append(len(batch))
    return found


def test_the_number_of_rows_is_raised_again_when_there_is_memory() -> None:
    pool, memory = pool_of(16), [5]
    assert sizes(pool, 10, memory) == [4] * 10
    memory[0] = 16  # another program has ended
    assert sizes(pool, 80, memory) == [4] * 22 + [8] * 32 + [16] * 26


def test_attempts_become_rare_if_memory_stays_short() -> None:
    """With room for 5 rows: 32 batches of 4 until the first attempt, then 64, 128."""
    pool, memory, failed, count = pool_of(16), [5], [], 0
    while count < 260:
        batch = pool.batch()
        assert batch is not None
        if len(batch) > memory[0]:
            failed.append((count, len(batch)))
            pool.shrink()
            continue
        pool.send(MODEL.predict(batch.x, batch.times))
        count += 1
    assert failed == [(0, 16), (0, 8), (32, 8), (96, 8), (224, 8)]


def test_the_samples_are_those_of_a_pool_that_never_failed() -> None:
    def run(memory: list[int]) -> list[torch.Tensor]:
        pool = pool_of(6, steps=30, rows=8)
        sizes(pool, 10**6, memory)
        return [done.result.samples for done in sorted(pool.pop_finished(), key=lambda done: done.id)]

    for found, expected in zip(run([3]), run([8]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_single_row_that_fails_is_reported_and_the_limit_ends() -> None:
    pool = pool_of(4)
    for rows, more in ((4, True), (2, True), (1, False)):
        batch = pool.batch()
        assert batch is not None
        assert (len(batch), pool.shrink()) == (rows, more)
    assert pool.remove(batch.rows[0].id)
    assert len(pool.batch() or ()) == 3
    assert pool.max_rows == 16


def test_without_a_batch_there_is_nothing_to_shrink() -> None:
    with pytest.raises(sds.UsageError, match="call batch\\(\\) first"):
        pool_of(1).shrink()
