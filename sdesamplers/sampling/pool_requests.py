"""A request in a `Pool`: its stepper, its conditions, and the evaluation that it waits for; its form as bytes."""

from __future__ import annotations

import io
import pickle
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..checks import device_of, number
from ..errors import UsageError
from ..models.conditions import is_structure, lengths, map_tensors, take_rows
from ..processes.fingerprint import fingerprint, is_same_process
from ..processes.sde import SDE
from ..public import public
from .pool_rows import Half, PoolRow
from .result import Result
from .stepper import Stepper

FORMAT = 1
"""The version of the layout of an evicted request."""


@public
@dataclass(frozen=True, eq=False)
class PoolResult:
    """A request that a pool has finished.

    Attributes:
        id: the request, as returned by `Pool.add`.
        stepper: its run.
        error: the error that ended it; None if it has a result.
    """

    id: int
    stepper: Stepper
    error: Exception | None = None

    @property
    def result(self) -> Result:
        """The `Result` of the run; if an error ended it, that error is raised."""
        if self.error is not None:
            raise self.error
        return self.stepper.result


class PoolRequest:
    """A running request.

    Args:
        stepper: its run.
        condition, unconditional, guidance_scale: as in `Pool.add`.

    Attributes:
        id: its number in the pool.

    Raises:
        UsageError: invalid conditions or guidance.
    """

    id: int

    def __init__(self, stepper: Stepper, condition: Any, unconditional: Any, guidance_scale: float) -> None:
        self.stepper = stepper
        self.condition = _checked("condition", condition, stepper)
        self.unconditional = _checked("unconditional", unconditional, stepper)
        self.guidance_scale = number("guidance_scale", guidance_scale)
        if self.guidance_scale != 1.0 and unconditional is None:
            raise UsageError(
                f"guidance_scale={self.guidance_scale:g} needs unconditional, the condition to guide away from, such "
                "as model.unconditional(1); a network that guides itself has guidance_scale 1 here"
            )
        self._halves: list[Half] | None = None

    @property
    def _is_guided(self) -> bool:
        """True if the network is evaluated under both conditions."""
        needs_both = self.guidance_scale != 1.0 or "unguided" in self.stepper.spec.needs
        return needs_both and self.unconditional is not None

    @property
    def halves(self) -> list[Half]:
        """The rows of the present evaluation, under the condition and, if it is guided, under the other one."""
        if self._halves is None:
            stepper, samples = self.stepper, self.stepper.rows
            states = stepper.x, stepper.t, stepper.times, stepper.end
            conditions = [self.condition, self.unconditional] if self._is_guided else [self.condition]
            self._halves = [
                Half(*states, take_rows(each, samples), tuple(PoolRow(self.id, int(j), k > 0) for j in samples))
                for k, each in enumerate(conditions)
            ]
        return self._halves

    def advance(self) -> None:
        """Pass the stepper the outputs of the evaluation, all of which have arrived."""
        outputs = [half.output for half in self.halves]
        self._halves = None
        value, unguided, log_density = outputs[0]
        if len(outputs) > 1:
            # Ho & Salimans 2022, eq. 6, with w + 1 = guidance_scale, as in `sample`.
            unguided = outputs[1].value
            value = unguided + self.guidance_scale * (value - unguided)
        elif unguided is None and "unguided" in self.stepper.spec.needs:
            unguided = value
        self.stepper.send(value, unguided=unguided, log_density=log_density)

    # As bytes.

    def dump(self) -> bytes:
        """The request as bytes, without code; outputs of an evaluation that is not complete are left out.

        Raises:
            UsageError: a condition is neither a tensor nor a dictionary or tuple of tensors.
        """
        stepper = self.stepper
        file = io.BytesIO()
        state = {
            "format": FORMAT,
            "process": fingerprint(stepper.process),
            "stepper": stepper.state_dict(),
            "clip": None if stepper.clip is None else asdict(stepper.clip),
            "check_finite": stepper.check_finite,
            "condition": _plain("condition", self.condition),
            "unconditional": _plain("unconditional", self.unconditional),
            "guidance_scale": self.guidance_scale,
        }
        torch.save(state, file)
        return file.getvalue()

    @classmethod
    def load(
        cls, data: bytes, process: SDE, prediction: str, clock: Any, device: torch.device | str | None
    ) -> PoolRequest:
        """The request of bytes from `dump`, of a network of this process, prediction type and clock.

        Raises:
            UsageError: other data, or the request of another network.
        """
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            found = state["format"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, IndexError, KeyError, ValueError):
            raise UsageError("this is no evicted request: pass the bytes that evict() returned") from None
        if found != FORMAT:
            raise UsageError(f"this request has format {found}, and this version of sdesamplers reads {FORMAT}")
        if not is_same_process(fingerprint(process), state["process"]):
            raise UsageError(
                f"this request is of a network on {state['process'][0]} with another schedule than the pool's "
                f"{type(process).__name__}"
            )
        run = state["stepper"]
        device = device_of("device", run["run"]["device"] if device is None else device)
        stepper = Stepper(
            process,
            run["recipe"],
            prediction=prediction,
            clock=clock,
            seed=run["seed"],
            indices=run["indices"],
            start=torch.zeros(len(run["indices"]), *run["shape"]),  # replaced by the stored state
            clip=state["clip"],
            log_probs=run["run"]["log_probs"] is not None,
            check_finite=state["check_finite"],
            dtype=getattr(torch, run["dtype"].removeprefix("torch.")),
            device=device,
        )
        stepper.load_state_dict(run)
        condition, unconditional = (
            map_tensors(state[name], lambda leaf: leaf.to(device)) for name in ("condition", "unconditional")
        )
        return cls(stepper, condition, unconditional, state["guidance_scale"])


def _checked(name: str, condition: Any, stepper: Stepper) -> Any:
    """A condition with one row for each sample of a stepper, its arrays as tensors."""
    if condition is None:
        return None
    if not hasattr(condition, "cat"):
        leaves = [leaf for leaf in tree_leaves(condition) if leaf is not None]
        is_supported = isinstance(condition, Tensor | np.ndarray) or is_structure(condition)
        if not is_supported or not all(isinstance(leaf, Tensor | np.ndarray) for leaf in leaves):
            raise UsageError(
                f"{name} must be a tensor (N, ...), a dictionary or tuple of tensors, or an object of a class with a "
                f"class method cat(list), not {type(condition).__name__}; model.condition_for(value, N) makes one of a "
                "user's value"
            )
        found, expected = lengths(condition), len(stepper.indices)
        if found != {expected}:
            raise UsageError(f"{name} must have a row for each of the {expected} samples, not {sorted(found)}")
        # A copy, since its owner may overwrite it.
        return map_tensors(condition, lambda leaf: torch.as_tensor(leaf).detach().clone())
    return condition


def _plain(name: str, condition: Any) -> Any:
    """A condition in tensors of their own, so that no larger tensor is stored of which they are a part."""
    if not _is_plain(condition):
        raise UsageError(
            f"a request whose {name} is or contains an object of another class cannot be evicted; tensors and "
            "dictionaries or tuples of tensors can"
        )
    return map_tensors(condition, torch.clone)


def _is_plain(condition: Any) -> bool:
    if type(condition) is tuple:
        return all(_is_plain(each) for each in condition)
    if type(condition) is dict:
        return all(isinstance(key, str) and _is_plain(each) for key, each in condition.items())
    return condition is None or isinstance(condition, Tensor)
