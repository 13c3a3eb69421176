"""Random numbers: each is a pure function of the seed, the sample index and its purpose.

The generator is Philox 4x64-10 (Salmon et al. 2011). Its key is (seed, sample index) and its counter identifies the
draw, so streams never overlap, any draw is available without the ones before it, and nothing depends on batch size,
device, number of processes or global state. Bits are generated on the CPU and converted to normals by the transform of
Box & Muller (1958).
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..checks import one_of_types, shape_of, shown, whole
from ..errors import PluginError, SdesamplersError, UsageError, last_place, summary
from ..public import public


class _Philox(threading.local):
    """NumPy's generator, one for each thread: creating one takes longer than a small draw."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(0)
        self.state: Any = self.generator.state
        # Philox keeps up to four unread outputs, which a new position discards.
        self.state["buffer_pos"], self.state["has_uint32"] = 4, 0

    def outputs(self, key: tuple[int, int], counter: tuple[int, ...], count: int) -> np.ndarray:
        """Return the first `count` 64-bit outputs for a key and a counter."""
        self.state["state"]["key"][:] = key
        self.state["state"]["counter"][:] = counter
        self.generator.state = self.state
        return np.asarray(self.generator.random_raw(count))


_PHILOX = _Philox()

START, PATH, BROWNIAN, AUXILIARY = range(STREAMS := 4)
"""Streams of a sample: its initial noise, the noise of its steps, its Brownian motion, and everything else."""
BRANCH, DECISIONS = START + STREAMS, PATH + STREAMS
"""The streams of `branch_seed` and `uniforms`. From STREAMS on, Brownian motions are BROWNIAN + STREAMS v."""


class Keys(list[tuple[int, int]]):
    """(seed, index) of each sample; `version` counts how often they were changed."""

    version = 0


@public
class NormalSource:
    """Standard normal tensors for the samples `indices` of the run `seed`.

    Its streams are START (the noise that a run starts from), PATH (the noise of its steps), BROWNIAN and AUXILIARY
    (free for plugins).

    Args:
        seed: a whole number, 0 <= seed < 2^64, or a list of one for each sample.
        indices: the samples' global indices; row j of every draw belongs to sample indices[j].
        shape: the shape of one sample.
    """

    START, PATH, BROWNIAN, AUXILIARY = START, PATH, BROWNIAN, AUXILIARY

    def __init__(self, seed: int | Sequence[int], indices: Sequence[int], shape: Sequence[int]) -> None:
        if isinstance(indices, str | bytes) or not isinstance(indices, Sequence | np.ndarray):
            raise UsageError(f"indices must be a sequence of whole numbers, not {shown(indices)}")
        self.seed, self.indices = seed, [whole("each of indices", index, 0) for index in indices]
        self.shape = shape_of("shape", shape)
        seeds = seed if isinstance(seed, list | tuple | range) else [seed] * len(self.indices)
        if len(seeds) != len(self.indices):
            raise UsageError(
                f"there are {len(seeds)} seeds for {len(self.indices)} samples; give one seed, or one per sample"
            )
        self._keys = Keys((check_seed(each), index) for each, index in zip(seeds, self.indices, strict=True))
        self._size = math.prod(self.shape)
        self._pairs = (self._size + 1) // 2

    def with_shape(self, shape: Sequence[int]) -> NormalSource:
        """Return a source of the same samples with another shape. If a run branches, it changes with this source.

        small = source.with_shape((3, 8, 8))
        """
        made = NormalSource(self.seed, self.indices, shape)
        made._keys = self._keys
        return made

    @property
    def keys(self) -> list[tuple[int, int]]:
        """(seed, index) of each sample, on which its draws depend."""
        return list(self._keys)

    @property
    def version(self) -> int:
        """A number that changes with the keys, for noise that keeps some of its draws."""
        return self._keys.version

    def rekey(self, keys: Sequence[tuple[int, int]]) -> None:
        """Draw with other keys from now on, here and in all sources made by `with_shape`."""
        self._keys[:] = keys
        self._keys.version += 1

    def draw(
        self, stream: int, position: int | Sequence[int] = 0, block: int = 0, rows: np.ndarray | None = None
    ) -> Tensor:
        """Return draw number (`stream`, `position`, `block`) as a float32 CPU tensor (N, *shape).

        Args:
            stream: one of the streams above.
            position: the number of the draw within the stream, or a list with one for each row.
            block: a second number of the draw.
            rows: return these rows only.
        """
        keys = self._keys if rows is None else [self._keys[r] for r in rows]
        bits = np.empty((len(keys), 2 * self._pairs), dtype=np.int32)
        count = (2 * self._pairs + 1) // 2
        for j, key in enumerate(keys):
            # The lowest word of the counter counts within the draw.
            counter = (0, position if isinstance(position, int) else position[j], block, stream)
            bits[j] = _PHILOX.outputs(key, counter, count).view(np.int32)[: 2 * self._pairs]
        normals = box_muller(bits[:, : self._pairs], bits[:, self._pairs :])
        return normals[:, : self._size].reshape(len(keys), *self.shape)


def branch_seed(seed: int, index: int, key: int) -> int:
    """The seed of sample `index` after its run has branched: a random 64-bit number, keyed by all three numbers."""
    return int(_PHILOX.outputs((seed, index), (0, key, 0, BRANCH), 1)[0])


def uniforms(seed: int, index: int, position: int, count: int) -> np.ndarray:
    """Uniform numbers in (0, 1) for decision `position` on sample `index`, such as a resampling: (count,), float64."""
    bits = _PHILOX.outputs((seed, index), (0, position, 0, DECISIONS), count)
    return ((bits >> np.uint64(12)) + 0.5) * 2.0**-52


def check_seed(seed: Any) -> int:
    """Return a valid seed; raise UsageError for anything else."""
    try:
        return whole("seed", seed, 0)
    except UsageError:
        raise UsageError(f"seed must be a whole number from 0 to 2^64 - 1, not {shown(seed)}") from None


def box_muller(first: np.ndarray, second: np.ndarray) -> Tensor:
    """Convert two int32 arrays (N, M) of random bits to 2M float32 normals per row, (N, 2M).

    Logarithm, root, sine and cosine are torch's, to whose last bit samples are reproduced. All else is correctly
    rounded by both libraries, and small arrays take NumPy a quarter of the time.
    """
    # |k| keeps small uniforms exact, which the tail needs; (|k| + 1/2) / 2^31 is never 0.
    radius = first.astype(np.float32)
    np.abs(radius, out=radius)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-31)
    shared = torch.from_numpy(radius)
    shared.log_()
    radius *= np.float32(-2)
    shared.sqrt_()
    angle = second.astype(np.float32)
    angle *= np.float32(math.pi / 2**31)
    turn, count = torch.from_numpy(angle), angle.shape[1]
    out = np.empty((len(angle), 2 * count), dtype=np.float32)
    np.multiply(radius, torch.cos(turn).numpy(), out=out[:, :count])
    np.multiply(radius, turn.sin_().numpy(), out=out[:, count:])
    return torch.from_numpy(out)


class Noise(Protocol):
    """The callable with which `Path.draw` gets the noise of a step between two values of lambda = log(alpha/sigma)."""

    def __call__(self, start: float, end: float, rows: np.ndarray | None = None) -> Tensor: ...


def skip_draw(noise: Noise, start: float, end: float, rows: np.ndarray | None = None) -> None:
    """Count a draw of which the noise is not needed, so that later draws are the same; some sources have to make it."""
    getattr(noise, "skip", noise)(start, end, rows)


def noise_of_step(noise: Noise, start: float, end: float, rows: np.ndarray | None, state: Tensor) -> Tensor:
    """The noise of a step between two values of lambda, for a state (N, *shape).

    Raises:
        PluginError: the noise source raised an error; or it returned no floating-point tensor of the state's shape,
            which arithmetic would broadcast silently. Integers are accepted if all are 1 or -1 (two-point noise).
    """
    try:
        drawn = noise(start, end, rows)
    except (SdesamplersError, MemoryError):
        raise
    except Exception as error:  # whatever a faulty source raises, which is no fault of the sampler that draws
        if "memory" in str(error):
            raise  # callers handle out-of-memory errors by halving the batch
        is_call = isinstance(error, TypeError) and "argument" in str(error)
        advice = "; it is called as noise(start, end, rows)" if is_call else ""
        raise PluginError(f"the noise source raised {summary(error)}{last_place(error)}{advice}") from error
    return checked_noise(drawn, state)


def checked_noise(noise: Any, state: Tensor) -> Tensor:
    """Return what a noise source returned for a state, or raise a `PluginError`."""
    if not isinstance(noise, Tensor):
        raise PluginError(
            f"the noise source returned {type(noise).__name__} for a state of {tuple(state.shape)}; it must return a "
            f"tensor, as source.draw does{'' if noise is not None else ': is `return` missing?'}"
        )
    if noise.shape != state.shape:
        raise PluginError(
            f"the noise source returned noise of shape {tuple(noise.shape)} for a state of {tuple(state.shape)}"
        )
    whole = noise.dtype.is_signed and not noise.is_complex()
    if not noise.is_floating_point() and not (whole and bool((noise.abs() == 1).all())):
        raise PluginError(f"the noise source returned noise of {noise.dtype}; it must be floating-point")
    return noise


@public
class IndependentNoise:
    """An independent standard normal for every draw of a run."""

    def __init__(self, source: NormalSource) -> None:
        self._source = one_of_types("source", source, NormalSource, "a NormalSource")
        # Draws so far of each sample; they differ if samples take different steps.
        self._counts = np.zeros(len(source.indices), dtype=np.int64)

    def __call__(self, start: float, end: float, rows: np.ndarray | None = None) -> Tensor:
        taking = slice(None) if rows is None else rows
        self._counts[taking] += 1
        return self._source.draw(PATH, self._counts[taking].tolist(), rows=rows)

    def skip(self, start: float, end: float, rows: np.ndarray | None = None) -> None:
        """Count a draw without making it."""
        self._counts[slice(None) if rows is None else rows] += 1


MIN_LEVELS = 5


@public
class BrownianNoise:
    """Increments of one Brownian motion per sample, over an interval of lambda, scaled to unit variance.

    The motion is defined on the whole real line. Each unit cell has a normal for its total increment, and within a cell
    Levy's construction adds midpoints, W(u) = u Z + sum_l tent_l(u) z_l, for l below `levels`; a smallest piece is
    bridged with the normal that would be its midpoint's. An increment is thus a short weighted sum of keyed normals and
    a pure function of the two ends of the interval: it does not depend on how the interval is divided. Its distribution
    is exact if no two ends lie in the same smallest piece (2^-levels wide). Sources with different `levels` agree at
    all multiples of half a smallest piece of the coarser one.

    Successive calls follow one motion as long as the steps do not overlap. A step that overlaps an earlier one (of a
    sampler that adds noise again) starts another, independent motion.
    """

    def __init__(self, source: NormalSource, levels: int = MIN_LEVELS) -> None:
        self._source, self._levels = source, levels
        self._cache: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()
        self._version = source.version
        self._visit, self._covered = 0, (math.inf, -math.inf)

    @classmethod
    def for_steps(cls, source: NormalSource, shortest: float) -> BrownianNoise:
        """Choose `levels` so that no two ends of steps of length `shortest` or more lie in the same smallest piece."""
        return cls(source, brownian_levels([0.0, shortest]))

    def __call__(self, start: float, end: float, rows: np.ndarray | None = None) -> Tensor:
        self.skip(start, end, rows)
        increment, deviation = self.increment(start, end, rows, self._visit)
        return increment.div_(deviation)

    def skip(self, start: float, end: float, rows: np.ndarray | None = None) -> None:
        """Record that a step has been taken, without its increment."""
        (low, high), (lowest, highest) = sorted((start, end)), self._covered
        if low < highest and high > lowest:
            self._visit, lowest, highest = self._visit + 1, low, high
        self._covered = (min(low, lowest), max(high, highest))

    def increment(
        self, start: float, end: float, rows: np.ndarray | None = None, visit: int = 0
    ) -> tuple[Tensor, float]:
        """Return W(end) - W(start) of motion number `visit`, and its standard deviation."""
        if rows is not None or not (math.isfinite(start) and math.isfinite(end)):
            raise UsageError(
                "Brownian noise needs finite steps that all samples take together; use noise='independent'"
            )
        low, high = sorted((start, end))
        if low == high:
            raise UsageError("Brownian noise needs a step of positive length, but two grid points coincide")
        weights = self._weights(high)
        for key, weight in self._weights(low).items():
            weights[key] = weights.get(key, 0.0) - weight
        for cell in range(math.floor(low), math.floor(high)):
            weights[cell, 0] = weights.get((cell, 0), 0.0) + 1.0
        parts = [(weight, self._normal((visit, *key))) for key, weight in sorted(weights.items()) if weight != 0.0]
        total = parts[0][1] * parts[0][0]
        for weight, normal in parts[1:]:
            total.add_(normal, alpha=weight)
        sign = 1.0 if end > start else -1.0
        return total.mul_(sign), math.sqrt(sum(weight * weight for weight, _ in parts))

    def _weights(self, time: float) -> dict[tuple[int, int], float]:
        """W(time) - W(floor(time)) as weights of normals keyed by (cell, node); node 0 is the increment of the cell."""
        cell = math.floor(time)
        u = time - cell
        weights = {(cell, 0): u}
        for level in range(self._levels + 1):
            piece, v = divmod(u * 2**level, 1.0)
            height = min(v, 1 - v) if level < self._levels else math.sqrt(v * (1 - v))
            weights[cell, 2**level + int(piece)] = 2 ** (-level / 2) * height
        return weights

    def _normal(self, key: tuple[int, int, int]) -> Tensor:
        if self._version != self._source.version:  # these normals belong to other keys
            self._version = self._source.version
            self._cache.clear()
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        visit, cell, node = key
        normal = self._source.draw(BROWNIAN + STREAMS * visit, node, 2 * cell if cell >= 0 else -2 * cell - 1)
        self._cache[key] = normal
        if len(self._cache) > 2 * self._levels + 4:
            self._cache.popitem(last=False)
        return normal


def shortest_step(clocks: Sequence[float]) -> float:
    """The smallest distance between consecutive, different values of the clock; infinite if there are none."""
    gaps = np.abs(np.diff(np.asarray(clocks, dtype=float)))
    return float(gaps[gaps > 0].min(initial=math.inf))


def brownian_levels(clocks: Sequence[float]) -> int:
    """The number of levels of the construction: five, or more if a step is shorter than 2^-5."""
    shortest = shortest_step(clocks)
    return max(MIN_LEVELS, math.ceil(-math.log2(shortest))) if math.isfinite(shortest) else MIN_LEVELS
