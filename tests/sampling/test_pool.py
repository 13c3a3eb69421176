"""`Pool`: every request equals its run alone; turns, limits, removal, threads, requests as bytes."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdesamplers as sds

PROCESS = sds.VP()
NULL = torch.tensor([0.0])


def network(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
    """A prediction in which a row does not depend on the batch: products and quotients are rounded by themselves."""
    t = t.view(-1, *[1] * (x.dim() - 1))
    shift = 0.0 if label is None else label.view(t.shape) / 8
    return (x * (1 + t) + shift) / (1 + x * x / 2)


MODEL = sds.FunctionModel(network, PROCESS, "epsilon", (5,), conditional=True, null_condition=NULL)


def new(sampler: str = "dpmpp-2m-sde", **arguments: Any) -> sds.Stepper:
    return sds.Stepper(PROCESS, sampler, prediction="epsilon", **{"shape": (5,), "steps": 6, **arguments})


def new_pool(**arguments: Any) -> sds.Pool:
    return sds.Pool(PROCESS, prediction="epsilon", **arguments)


def step(pool: sds.Pool) -> sds.PoolBatch | None:
    """One batch."""
    batch = pool.batch()
    if batch is not None:
        pool.send(network(batch.x, batch.t, batch.condition))
    return batch


def finished(pool: sds.Pool) -> dict[int, sds.PoolResult]:
    """All requests, at their ends."""
    while step(pool) is not None:
        assert len(pool) < 10**6
    return {each.id: each for each in pool.pop_finished()}


def alone(stepper: sds.Stepper, label: float | None = None) -> Tensor:
    """The samples of a run without a pool."""
    while not stepper.is_done:
        condition = None if label is None else torch.full((len(stepper.x),), label)
        stepper.send(network(stepper.x, stepper.t, condition))
    return stepper.x


# --- the same samples as alone ----------------------------------------------------------------------------------------

REQUESTS: list[dict[str, Any]] = [
    {"sampler": "euler", "steps": 5, "condition": 1.0},
    {"sampler": "dpmpp-2m", "steps": 9, "condition": 2.0, "guidance_scale": 3.0, "num_samples": 3},
    {"sampler": "dpmpp-2m-sde", "steps": 7, "condition": 3.0, "guidance_scale": 0.5, "noise": "brownian"},
    {"sampler": "heun", "steps": 4, "condition": 4.0, "first_index": 11, "num_samples": 2},
    {"sampler": "unipc", "steps": 8, "condition": 5.0, "spacing": "karras", "guidance_scale": 2.0},
    {"sampler": "rk45", "rtol": 1e-3, "condition": 6.0, "num_samples": 3},
    {"sampler": "paradigms", "steps": 6, "window": 3, "condition": 7.0, "num_samples": 2, "guidance_scale": 1.5},
    {"sampler": "euler-cfgpp", "steps": 6, "condition": 1.0, "guidance_scale": 0.6},
    {"sampler": "euler-cfgpp", "steps": 6, "condition": 2.0},
    {"sampler": "ab", "steps": 10, "condition": 3.0, "coordinates": "angle", "clip": (-2.0, 2.0)},
]


@pytest.mark.parametrize("max_rows", [1, 7, 64])
def test_each_request_has_the_samples_of_its_run_alone(max_rows: int) -> None:
    """Of `sample`, bit for bit, whatever shares its batches: guided, adaptive, stochastic and parallel methods."""
    pool, expected = new_pool(max_rows=max_rows), {}
    for seed, request in enumerate(REQUESTS):
        label, scale = request["condition"], request.get("guidance_scale", 1.0)
        arguments = {key: value for key, value in request.items() if key not in ("condition", "guidance_scale", "clip")}
        model = copy.copy(MODEL)
        model.clip = sds.Clip(*request["clip"]) if "clip" in request else None
        expected[seed] = sds.sample(model, seed=seed, condition=label, guidance_scale=scale, **arguments)
        own = {"num_samples": 1, **arguments}
        stepper = sds.Stepper(PROCESS, shape=(5,), prediction="epsilon", seed=seed, clip=request.get("clip"), **own)
        rows = (MODEL.condition_for(label, own["num_samples"]), MODEL.unconditional(own["num_samples"]))
        assert pool.add(stepper, condition=rows[0], unconditional=rows[1], guidance_scale=scale) == seed
    results = finished(pool)
    assert sorted(results) == sorted(expected)
    for id, result in expected.items():
        assert torch.equal(results[id].result.samples, result.samples), REQUESTS[id]
        assert results[id].result.nfe_per_sample.tolist() == result.nfe_per_sample.tolist()
        assert results[id].result.recipe == result.recipe


def test_the_embedded_model_in_batches_of_mixed_times() -> None:
    """In float64, in which only the library could couple requests; a convolution rounds by the size of its batch."""
    model, pool = sds.load("fashion-mnist", dtype="float64"), None
    for seed, (sampler, steps) in enumerate([("dpmpp-2m", 2), ("euler", 2), ("ddpm", 3)]):
        arguments: dict[str, Any] = {"prediction": model.prediction, "dtype": torch.float64, "clip": model.clip}
        pool = pool or sds.Pool(model.process, prediction=model.prediction)
        pool.add(sds.Stepper(model.process, sampler, shape=model.shape, steps=steps, seed=seed, **arguments))
    assert pool is not None
    with torch.no_grad():
        while (batch := pool.batch()) is not None:
            output = model.predict(batch.x, batch.times, batch.condition)
            assert isinstance(output, Tensor)
            pool.send(output)
    for done in pool.pop_finished():
        recipe = done.result.recipe
        expected = sds.sample(model, recipe, seed=done.id).samples
        torch.testing.assert_close(done.result.samples, expected, rtol=0, atol=1e-9)


def test_a_network_that_guides_itself() -> None:
    """`Guided` with a formula of its own, whose conditions are pairs and whose output has the unguided one."""
    guided = sds.Guided(MODEL, 2.5, combine="cfg-zero-star", batched=True)
    pool, expected = new_pool(max_rows=3), []
    for seed, sampler in enumerate(["dpmpp-2m", "euler-cfgpp"]):
        expected.append(sds.sample(guided, sampler, steps=5, seed=seed, num_samples=2, condition=[1.0, 4.0]).samples)
        condition = guided.condition_for([1.0, 4.0], 2)
        pool.add(new(sampler, steps=5, seed=seed, num_samples=2), condition=condition)
    while (batch := pool.batch()) is not None:
        output = guided.predict(batch.x, batch.times, batch.condition)
        assert isinstance(output, sds.Output)
        pool.send(output.value, unguided=output.unguided)
    for done in pool.pop_finished():
        torch.testing.assert_close(done.result.samples, expected[done.id], rtol=1e-6, atol=1e-6)


def test_log_densities_and_flow_maps() -> None:
    """MALA receives the density of its rows; flow maps the ends of their steps, apart from other requests."""
    langevin, chain = sds.LangevinSDE(torch.neg), {"prediction": "score", "shape": (5,), "steps": 4}
    pool = sds.Pool(langevin, prediction="score")
    runs = [sds.Stepper(langevin, "mala", seed=seed, num_samples=seed + 1, **chain) for seed in range(2)]
    expected = []
    for run in (copy.deepcopy(run) for run in runs):
        while not run.is_done:
            run.send(-run.x, log_density=-(run.x[:, 0] ** 2))
        expected.append(run.x)
    for run in runs:
        pool.add(run)
    while (batch := pool.batch()) is not None:
        pool.send(-batch.x, log_density=-(batch.x[:, 0] ** 2))
    assert all(torch.equal(done.stepper.x, expected[done.id]) for done in pool.pop_finished())

    flow = sds.RectifiedFlow()
    maps = sds.Pool(flow, prediction="flow", clock=10)
    for name in ("flow-map-euler", "euler"):
        maps.add(sds.Stepper(flow, name, prediction="flow", shape=(2,), steps=2, clock=10))
    batches = []
    while (batch := maps.batch()) is not None:
        batches.append((batch.t.tolist(), None if batch.end is None else batch.end.tolist()))
        maps.send(batch.x)
    assert batches == [([10.0], [5.0]), ([10.0], None), ([5.0], [0.0]), ([5.0], None)]


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [1, 3, 4, 10])
def test_requests_take_turns(max_rows: int) -> None:
    """Batches are full, and no request is ever two evaluations ahead of another, guided ones included."""
    pool = new_pool(max_rows=max_rows)
    runs = [new("euler", steps=12, seed=seed, num_samples=1 + seed % 2) for seed in range(7)]
    for seed, run in enumerate(runs):
        rows = {"condition": torch.ones(1 + seed % 2), "unconditional": torch.zeros(1 + seed % 2)}
        pool.add(run, guidance_scale=2.0 if seed % 3 == 0 else 1.0, **rows)
    while not any(run.is_done for run in runs):
        batch = step(pool)
        assert batch is not None
        assert len(batch) == len(batch.x) == max_rows
        counts = [run.evaluations for run in runs]
        assert max(counts) - min(counts) <= 1
    for run in runs:
        assert run.evaluations >= 11


def test_a_row_knows_where_it_comes_from() -> None:
    pool = new_pool()
    first = pool.add(new(num_samples=2), condition=torch.tensor([3.0, 4.0]))
    second = pool.add(
        new("euler", steps=3, seed=1), condition=torch.tensor([5.0]), unconditional=NULL, guidance_scale=2.0
    )
    batch = pool.batch()
    assert batch is not None
    assert batch.rows == ((first, 0, False), (first, 1, False), (second, 0, False), (second, 0, True))
    assert batch.condition.tolist() == [3.0, 4.0, 5.0, 0.0]
    assert torch.equal(batch.x[2], batch.x[3])
    np.testing.assert_allclose(batch.t.numpy(), batch.times, rtol=1e-6)
    assert len(batch) == 4


def test_what_cannot_be_joined_is_in_batches_apart() -> None:
    """Shapes, dtypes, and conditions of other lengths or structures, such as prompts; nobody starves."""
    pool = new_pool(max_rows=4)
    others = [
        (new(shape=(5,)), torch.zeros(1, 7)),
        (new(shape=(3, 4)), torch.zeros(1, 7)),
        (new(shape=(5,), dtype=torch.float64), torch.zeros(1, 7)),
        (new(shape=(5,)), torch.zeros(1, 9)),
        (new(shape=(5,)), {"text": torch.zeros(1, 7), "mask": None}),
        (new(shape=(5,)), None),
    ]
    waits: dict[int, int] = {}
    for stepper, condition in others:
        waits[pool.add(copy.deepcopy(stepper), condition=condition)] = 0
        waits[pool.add(stepper, condition=condition)] = 0
    while (batch := pool.batch()) is not None:
        assert len({row.id // 2 for row in batch.rows}) == 1
        assert len(batch) == 2
        served = {row.id for row in batch.rows}
        waits = {id: 0 if id in served else count + 1 for id, count in waits.items()}
        assert max(waits.values()) < len(waits)
        pool.send(batch.x / 2)
    assert len(pool.pop_finished()) == 12


class Prompt:
    """A condition of a class of its own, which refuses prompts of other lengths only when they are joined."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __getitem__(self, rows: Any) -> "Prompt":
        return type(self)(self.tokens[rows])

    @classmethod
    def cat(cls, prompts: list["Prompt"]) -> "Prompt":
        return cls(torch.cat([prompt.tokens for prompt in prompts]))


def test_objects_that_cannot_be_joined_are_evaluated_apart() -> None:
    pool = new_pool()
    for length in (4, 4, 6):
        pool.add(new("euler", steps=2, seed=length), condition=Prompt(torch.full((1, length), float(length))))
    lengths = []
    while (batch := pool.batch()) is not None:
        lengths.append(tuple(batch.condition.tokens.shape))
        pool.send(network(batch.x, batch.t, batch.condition.tokens[:, 0]))
    for done in pool.pop_finished():
        length = 4 if done.id < 2 else 6
        assert torch.equal(done.stepper.x, alone(new("euler", steps=2, seed=length), float(length)))
    assert (1, 6) in lengths


def test_a_batch_that_was_not_sent_is_made_again() -> None:
    """With fewer rows, for a network that ran out of memory; outputs that have arrived stay."""
    pool = new_pool(max_rows=4)
    ids = [pool.add(new("heun", steps=3, seed=seed, num_samples=3)) for seed in range(2)]
    first = pool.batch()
    assert first is not None
    pool.max_rows = 2
    second = pool.batch()
    assert second is not None
    assert second.rows == first.rows[:2]
    with pytest.raises(sds.UsageError, match=r"outputs must be .* of shape \(2, 5\), not .*\(4, 5\)"):
        pool.send(first.x)
    pool.send(network(second.x, second.t))
    third = pool.batch()
    assert third is not None
    assert third.rows == ((ids[0], 2, False), (ids[1], 0, False))
    results = finished(pool)
    for seed, id in enumerate(ids):
        assert torch.equal(results[id].stepper.x, alone(new("heun", steps=3, seed=seed, num_samples=3)))


def test_the_network_may_reuse_its_output() -> None:
    """A buffer that the next batch overwrites, while an evaluation is still incomplete."""
    pool, buffer = new_pool(max_rows=2), torch.empty(2, 5)
    pool.add(new("dpmpp-2m", num_samples=3))
    while (batch := pool.batch()) is not None:
        part = buffer[: len(batch)]
        part.copy_(network(batch.x, batch.t))
        pool.send(part)
    assert torch.equal(pool.pop_finished()[0].stepper.x, alone(new("dpmpp-2m", num_samples=3)))


def test_outputs_of_inference_mode() -> None:
    pool = new_pool(max_rows=2)
    pool.add(new("dpmpp-2m", num_samples=3))
    with torch.inference_mode():
        results = finished(pool)
    assert torch.equal(results[0].stepper.x, alone(new("dpmpp-2m", num_samples=3)))


class Broken(Prompt):
    """A condition that cannot be used at all."""

    @classmethod
    def cat(cls, prompts: list[Prompt]) -> Prompt:
        raise TypeError("a fault of the condition")


def test_a_condition_that_cannot_be_used_ends_only_its_own_request() -> None:
    pool = new_pool()
    broken = pool.add(new(), condition=Broken(torch.zeros(1, 4)))
    short = pool.add(new(num_samples=2), condition=Prompt(torch.zeros(1, 4)))
    good = pool.add(new(seed=2))
    results = finished(pool)
    assert isinstance(results[broken].error, TypeError)
    assert isinstance(results[short].error, IndexError)
    assert torch.equal(results[good].stepper.x, alone(new(seed=2)))


# --- requests that leave ----------------------------------------------------------------------------------------------


def test_removal() -> None:
    """Before the first batch, between a batch and its outputs, and at the end; the others are not affected."""
    pool = new_pool(max_rows=3)
    ids = [pool.add(new(seed=seed)) for seed in range(5)]
    assert pool.remove(ids[0])
    assert not pool.remove(ids[0])
    batch = pool.batch()
    assert batch is not None
    assert pool.remove(ids[1])
    assert len(pool) == 3
    pool.send(network(batch.x, batch.t))
    while len(pool):
        step(pool)
    assert pool.remove(ids[4])
    results = pool.pop_finished()
    assert [each.id for each in results] == [2, 3]
    assert not pool.remove(ids[2])
    for each in results:
        assert torch.equal(each.stepper.x, alone(new(seed=each.id)))


def test_an_error_ends_only_its_own_request() -> None:
    @sds.sampler("faulty", order=1)
    def faulty(x: Tensor, path: sds.Path) -> Any:
        """Fail after the first evaluation."""
        x = (yield x, path.points[0]).x
        raise ZeroDivisionError("a fault of the sampler")

    pool = new_pool()
    broken, lost, good = pool.add(new(faulty)), pool.add(new(seed=1)), pool.add(new(seed=2))  # type: ignore[arg-type]
    batch = pool.batch()
    assert batch is not None
    output = network(batch.x, batch.t)
    output[1, 2] = float("nan")
    pool.send(output)
    first = {each.id: each for each in pool.pop_finished()}
    assert sorted(first) == [broken, lost]
    with pytest.raises(ZeroDivisionError, match="a fault of the sampler"):
        first[broken].result  # noqa: B018
    assert isinstance(first[lost].error, sds.NonFiniteError)
    assert torch.equal(finished(pool)[good].stepper.x, alone(new(seed=2)))


# --- threads ----------------------------------------------------------------------------------------------------------


def test_other_threads_add_and_remove() -> None:
    """Two clients add 60 requests and remove every third; none of the others is lost or has another's samples."""
    pool, results, removed, seeds = new_pool(max_rows=5), {}, set(), {}
    clients_left, lock = [2], threading.Lock()

    def client(first: int) -> None:
        for seed in range(first, first + 30):
            id = pool.add(new("dpmpp-2m-sde", steps=2 + seed % 5, seed=seed), condition=torch.tensor([seed % 4.0]))
            with lock:
                seeds[id] = seed
            if seed % 3 == 0 and pool.remove(id):
                with lock:
                    removed.add(id)
        with lock:
            clients_left[0] -= 1

    threads = [threading.Thread(target=client, args=(first,)) for first in (0, 30)]
    for thread in threads:
        thread.start()
    while clients_left[0] or len(pool):
        if pool.wait(0.01):
            step(pool)
        results.update({each.id: each for each in pool.pop_finished()})
    for thread in threads:
        thread.join()
    assert results.keys() | removed == seeds.keys()
    assert not results.keys() & removed
    assert len(removed) <= 20
    for id, each in results.items():
        seed = seeds[id]
        expected = alone(new("dpmpp-2m-sde", steps=2 + seed % 5, seed=seed), seed % 4.0)
        assert torch.equal(each.result.samples, expected)


def test_waiting_for_a_request() -> None:
    pool = new_pool()
    assert not pool.wait(0.0)
    timer = threading.Timer(0.05, lambda: pool.add(new()))
    timer.start()
    assert pool.wait(30)
    timer.join()


# --- requests as bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["dpmpp-2m-sde", "rk45", "paradigms"])
def test_an_evicted_request_continues_bit_for_bit(sampler: str) -> None:
    """In another pool, between evaluations and with half of an evaluation's outputs."""
    arguments: dict[str, Any] = {"sampler": sampler, "seed": 5, "num_samples": 2, "clip": (-3.0, 3.0)}
    arguments |= {"steps": None, "rtol": 1e-2} if sampler == "rk45" else {"steps": 5}
    guidance = {"condition": torch.arange(9.0)[3:5], "unconditional": torch.zeros(2), "guidance_scale": 1.5}
    pool = new_pool(max_rows=64)
    pool.add(new(**arguments), **guidance)
    expected = finished(pool)[0].result

    pool = new_pool(max_rows=3)
    id = pool.add(new(**arguments), **guidance)
    for _ in range(3):
        step(pool)
        before = len(pool)
        data = pool.evict(id)
        assert len(pool) == before - 1
        pool = new_pool(max_rows=3)
        pool.add(new(seed=9), **{**guidance, "condition": NULL, "unconditional": NULL})
        id = pool.restore(data)
    found = finished(pool)[id].result
    assert torch.equal(found.samples, expected.samples)
    assert found.nfe_per_sample.tolist() == expected.nfe_per_sample.tolist()


def test_the_bytes_have_the_size_of_the_state() -> None:
    """Not of the larger tensors of which its conditions are rows."""
    pool, table = new_pool(), torch.zeros(1000, 1000)
    id = pool.add(new("euler", num_samples=1), condition={"text": (table[:1],), "none": None})
    step_free = pool.batch()
    assert step_free is not None
    data = pool.evict(id)
    assert len(data) < 20_000
    other = new_pool()
    other.restore(data)
    batch = other.batch()
    assert batch is not None
    assert torch.equal(batch.x, step_free.x)
    assert batch.condition["text"][0].shape == (1, 1000)
    assert batch.condition["none"] is None


def test_runs_that_start_from_given_states_with_log_probabilities() -> None:
    start = torch.ones(2, 5) * torch.tensor([[1.0], [2.0]])
    arguments: dict[str, Any] = {"start": start, "start_time": 0.5, "log_probs": True, "num_samples": None}
    expected = new("ddpm", **arguments)
    alone(expected)
    pool = new_pool()
    id = pool.add(new("ddpm", **arguments))
    step(pool)
    id = pool.restore(pool.evict(id))
    found = finished(pool)[id].result
    for name in ("samples", "log_probs", "draws", "start"):
        assert torch.equal(getattr(found, name), getattr(expected.result, name)), name


def test_bytes_that_are_refused() -> None:
    pool = new_pool()
    id = pool.add(new())
    data = pool.evict(id)
    for other, message in (
        (sds.Pool(sds.VP(beta_max=10.0), prediction="epsilon"), "a network on VP with another schedule"),
        (sds.Pool(sds.EDM(), prediction="epsilon"), "network on VP with another schedule than the pool's EDM"),
        (sds.Pool(sds.VP(), prediction="v"), "prediction epsilon"),
    ):
        with pytest.raises(sds.UsageError, match=message):
            other.restore(data)
    sds.Pool(sds.VP(), prediction="epsilon").restore(data)
    for wrong in (b"", b"nothing", data[:500]):
        with pytest.raises(sds.UsageError, match="this is no evicted request"):
            pool.restore(wrong)
    with pytest.raises(sds.UsageError, match="no running request with id 0"):
        pool.evict(id)
    prompt = pool.add(new(), condition=Prompt(torch.zeros(1, 4)))
    with pytest.raises(sds.UsageError, match="condition is or contains an object of another class"):
        pool.evict(prompt)
    assert len(pool) == 1


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[Callable[[sds.Pool], Any], str]] = [
    (lambda pool: pool.add("euler"), "a request is an sds.Stepper, not 'euler'"),
    (lambda pool: pool.add(new(gradients=True)), "keeps no gradients"),
    (lambda pool: pool.add(new(clock=1000)), "clock=1000, and the pool's network 1.0"),
    (lambda pool: pool.add(new(num_samples=2), condition=torch.zeros(3)), r"each of the 2 samples, not \[3\]"),
    (lambda pool: pool.add(new(), condition=7), "condition must be a tensor .*, not int; model.condition_for"),
    (lambda pool: pool.add(new(), condition=["a prompt"]), "condition must be a tensor .*, not list"),
    (lambda pool: pool.add(new(), condition=torch.zeros(1), guidance_scale=2), "guidance_scale=2 needs unconditional"),
    (lambda pool: pool.send(torch.zeros(1, 5)), r"call batch\(\) first"),
    (lambda pool: pool.evict(0), "no running request with id 0"),
    (lambda pool: new_pool(max_rows=0), "max_rows must be a whole number of 1 or more"),
    (lambda pool: sds.Pool("vp", prediction="epsilon"), "process must be a process"),  # type: ignore[arg-type]
    (lambda pool: sds.Pool(PROCESS, prediction="noises"), "prediction"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call: Callable[[sds.Pool], Any], message: str) -> None:
    with pytest.raises(sds.SdesamplersError, match=message):
        call(new_pool())


def test_steppers_that_are_refused() -> None:
    pool, stepper = new_pool(), new()
    ended = new()
    alone(ended)
    with pytest.raises(sds.UsageError, match="has ended"):
        pool.add(ended)
    pool.add(stepper)
    with pytest.raises(sds.UsageError, match="in the pool already"):
        pool.add(stepper)
    flow = sds.Stepper(sds.EDM(), "euler", prediction="epsilon", shape=(5,), steps=2)
    with pytest.raises(sds.UsageError, match="this stepper's process, EDM, is not that of the pool's network, VP"):
        pool.add(flow)
    pool.add(sds.Stepper(sds.VP(), "euler", prediction="epsilon", shape=(5,), steps=2))  # an equal process
    assert repr(pool) == "<Pool of 2 requests on VP, at most 64 rows a batch>"


def test_a_condition_is_copied() -> None:
    pool, label = new_pool(), torch.ones(1)
    id = pool.add(new(), condition=label)
    label.fill_(5.0)
    assert torch.equal(finished(pool)[id].result.samples, alone(new(), 1.0))
