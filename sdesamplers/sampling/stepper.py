"""`Stepper`: a sampler that is advanced by hand, one network evaluation at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import device_of, flag, shape_of, suggest_keywords
from ..errors import NonFiniteError, PluginError, UsageError
from ..models.clipping import Clip, ClipLike
from ..path.noise import NormalSource, check_seed
from ..path.points import Point, model_state
from ..processes.predictions import prediction_type
from ..processes.sde import SDE, GaussianProcess, not_a_process
from ..public import public
from ..registry.plugin import NoiseSource, Sampler, Spacing
from .arguments import make_recipe
from .prepared import as_start, make_noise, shortest_draw, start_state
from .recipe import Recipe, noise_of
from .recorded import RecordedRun
from .records import Keys, Setup
from .request import Conduct, Request
from .result import Result
from .runs import make_path
from .stepper_arguments import START_TIME, Clock, checked_clock, indices_of
from .stepper_copies import Copied
from .stepper_outputs import Reader
from .stepper_scored import Scored
from .stepper_state import result_of
from .table import SolverTable, TableSet
from .waiting import Waiting


@public
class Stepper(Copied, Scored):
    """A run in progress, advanced by hand: it says where the network is evaluated next, and receives its output.

        stepper = sds.Stepper(sds.RectifiedFlow(), "dpmpp-2m", prediction="flow", shape=(16,), steps=20, num_samples=4)
        while not stepper.is_done:
            stepper.send(network(stepper.x, stepper.t))
        samples = stepper.result.samples

    The samples are those of `sample` with the same arguments and a model of the same outputs. A stepper can be copied,
    pickled and stored in the middle of a run (`copy.deepcopy`, `pickle`, `state_dict`), and every copy continues as the
    original does, bit for bit. It keeps only the predictions on which the sampler still depends: none for one-step
    methods, the last few for multistep methods, all of them for methods that read values, such as adaptive steps.

    Args:
        process: the process that the network was trained on.
        sampler: as in `sample`.
        prediction: the type of the network's output, one of `PREDICTIONS`.
        shape: the shape of one sample; by default that of `start`.
        clock: the network's time for a time of the process: a factor (1000 for most flow models), or a function.
        steps, nfe, spacing, spacing_options, times, sigmas, coordinates, noise, noise_options, final, start_time: as in
            `sample`.
        seed, first_index, num_samples: as in `sample`: sample j depends on (seed, first_index + j).
        indices: the indices of the samples, instead of `first_index` and `num_samples`.
        start: initial states (num_samples, *shape) in the model's coordinates; drawn from the prior by default.
        clip: bounds of x0 at each evaluation: a bound, (low, high), a `Clip`, or True for [-1, 1].
        log_probs: record the exact log-probability of each stochastic transition, as in `sample`.
        check_finite: raise an error if an output (on the CPU) or the sample is not finite.
        gradients: keep the graph of the outputs that are sent. Copies continue from its values without it.
        dtype, device: of the states; float32 and, by default, the device of `start`, else the CPU.
        **options: the sampler's own options.

    Attributes:
        recipe: the `Recipe` of the run.
        indices: the samples' indices.
        seed: the seed of the run.
        evaluations: the number of outputs that have been sent.

    Raises:
        UsageError: invalid or conflicting arguments.
    """

    @suggest_keywords(owner="Stepper")
    def __init__(
        self,
        process: SDE,
        sampler: str | Sampler | Recipe | SolverTable | TableSet | Mapping[str, Any] = "quality",
        *,
        prediction: str,
        shape: Sequence[int] | None = None,
        clock: Clock = 1.0,
        steps: int | None = None,
        nfe: int | None = None,
        spacing: str | Spacing | None = None,
        spacing_options: dict[str, Any] | None = None,
        times: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        coordinates: str | None = None,
        seed: int = 0,
        num_samples: int | None = None,
        first_index: int = 0,
        indices: Sequence[int] | None = None,
        noise: str | NoiseSource | None = None,
        noise_options: dict[str, Any] | None = None,
        final: str | None = None,
        start: Tensor | None = None,
        start_time: float | None = None,
        clip: ClipLike = None,
        log_probs: bool = False,
        check_finite: bool = True,
        gradients: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(process, SDE):
            raise not_a_process("process must be a process, such as VP() or model.process", process)
        self.process, self.prediction, self.clock = process, prediction_type(prediction), checked_clock(clock)
        if self.prediction != "score" and not isinstance(process, GaussianProcess):
            raise UsageError(
                f"{type(process).__name__} has no alpha and sigma, so its network must predict the score, not "
                f"{self.prediction}"
            )
        self.clip = Clip.of(False if clip is None else clip)
        self.check_finite, self.gradients = flag("check_finite", check_finite), flag("gradients", gradients)
        start = None if start is None else as_start(start, self.check_finite)
        if start is None and (shape is None or start_time is not None):
            raise UsageError("pass start, or the shape of one sample" if shape is None else START_TIME)
        self.shape = shape_of("shape", start.shape[1:] if shape is None and start is not None else shape)
        self.indices = indices_of(indices, num_samples, first_index, start)
        if start is not None and tuple(start.shape) != (len(self.indices), *self.shape):
            raise UsageError(f"start must have shape {(len(self.indices), *self.shape)}, not {tuple(start.shape)}")
        self.seed, self.dtype = check_seed(seed), Conduct(dtype=dtype).dtype or torch.float32
        usual = torch.device("cpu") if start is None else start.device
        self.device = usual if device is None else device_of("device", device)
        request = Request(
            sampler, steps, nfe, spacing, spacing_options, times, sigmas, coordinates, noise, noise_options, final,
            start_time, options,
        )  # fmt: skip
        self.recipe, self.spec = make_recipe(request, process=process, shape=self.shape)
        if flag("log_probs", log_probs) and noise_of(self.recipe).limits:
            raise UsageError(f"log_probs need independent normal noise, and noise={self.recipe.noise!r} is coloured")
        self._prepare()
        path = self._setup.new_path()
        keys: Keys = [(self.seed, index) for index in self.indices]
        with torch.inference_mode(False), torch.no_grad():
            source = NormalSource(self.seed, self.indices, self.shape)
            path.ledger.noise = self._setup.new_noise(source)
            given = None if start is None else start.detach().clone()
            x = start_state(self.process, path, source, given, self.dtype, self.device)
            self._run = RecordedRun(self._setup, x, keys, log_probs=log_probs)
        self._first = x if log_probs else None

    evaluations: int = 0

    def _prepare(self) -> None:
        recipe, spec, path = self.recipe, self.spec, make_path(self.process, self.recipe)
        shortest, kind = shortest_draw(path, recipe, spec, self.shape), noise_of(recipe)
        label = f"{spec.name} on {type(self.process).__name__}"
        self._setup = Setup(
            spec, recipe.options, path.again, lambda source: make_noise(recipe, source, shortest, kind), label
        )
        self._reader = Reader(self.process, self.prediction, self.clip, spec, self.check_finite, label)

    # Where the network is evaluated.

    @property
    def is_done(self) -> bool:
        """True if the run has ended."""
        return self._run.is_over

    @property
    def requests(self) -> list[tuple[Tensor, Point[Any]]]:
        """The states, in the path's coordinates, and the points that wait for a prediction; several for samplers that
        evaluate at several points at once, such as `paradigms`."""
        return self._waiting.requests

    @property
    def point(self) -> Point[Any]:
        """The point of the next evaluation.

        Raises:
            UsageError: the run is over, or the sampler evaluates at several points at once; see `requests`.
        """
        requests = self.requests
        if len(requests) > 1:
            raise UsageError(f"{self.spec.name} evaluates at {len(requests)} points at once; read stepper.requests")
        return requests[0][1]

    @property
    def x(self) -> Tensor:
        """The states at which to evaluate the network, (M, *shape), in the model's coordinates.

        M is the number of samples, or of those in `rows`. It is a copy, which may be edited in place; or assign other
        states of the same shape, which are copied. When the run is over, these are the finished samples.

        Edits in place are noticed by torch's version counter. Those that bypass it, through `x.numpy()` or `x.data`,
        are ignored: assign the states instead.
        """
        with self._mode():
            if self._run.end is not None:
                return model_state(self._run.end, self._run.path.points[-1]).clone()
            return self._waiting.states

    @x.setter
    def x(self, value: Tensor) -> None:
        with self._mode():
            self._waiting.replace(value)

    @property
    def t(self) -> Tensor:
        """The network's time for each of the states `x`, (M,), by `clock`; float64 if the states are, else float32."""
        requests = self._waiting.requests
        x, point = requests[0]
        if len(requests) > 1 or point.rows is not None or callable(self.clock):
            return self._network_times(self._waiting.times())
        # One number for all samples needs no array that is copied to the device.
        time = self.clock * float(self.process.network_time(point.t))
        return torch.full(x.shape[:1], time, dtype=self.dtype, device=self.device)

    @property
    def times(self) -> np.ndarray:
        """The process's own time of each of the states `x`, (M,), float64."""
        return self._waiting.times()

    @property
    def end(self) -> Tensor | None:
        """The network's time of the end of the step, (M,), for flow maps; None if the sampler does not set it."""
        ends = self._waiting.ends()
        return None if ends is None else self._network_times(ends)

    def _network_times(self, times: np.ndarray) -> Tensor:
        times = np.asarray(self.process.network_time(times), dtype=np.float64)
        network_times = self.clock(times) if callable(self.clock) else self.clock * times
        return torch.as_tensor(network_times, dtype=torch.float64).to(device=self.device, dtype=self.dtype)

    @property
    def rows(self) -> np.ndarray:
        """(M,) the positions, among the samples, of the states `x`: the rows of a condition that the network needs."""
        return self._waiting.rows()

    @property
    def kept(self) -> int:
        """The number of predictions that are kept for copies, those on which the sampler still depends."""
        return len(self._run.record.sent)

    # The next step.

    def send(self, output: Tensor, *, unguided: Tensor | None = None, log_density: Tensor | None = None) -> Stepper:
        """Pass the sampler the network's output for the states `x`, and advance to the next evaluation.

        Args:
            output: (M, *shape) the output, after guidance if there is any.
            unguided: (M, *shape) the output without guidance, for samplers that need it (CFG++).
            log_density: (M,) the log-density in nats, for samplers that need it (MALA).

        Returns:
            The stepper itself.

        Raises:
            UsageError: the run is over, or an output has another shape or is missing.
            NonFiniteError: an output or the sample is not finite.
        """
        waiting = self._waiting
        with self._mode():
            reply = self._reader.predictions(waiting, output, unguided, log_density, self.evaluations)
            self._count(waiting)
            self._now = self._edited = None
            self._run.send(reply if waiting.is_list else reply[0])
            if self._run.end is not None:
                self._check_end(self._run.end)
        return self

    def _mode(self) -> AbstractContextManager[Any]:
        """The autograd mode of the sampler's computations, whatever the caller's mode."""
        if torch.is_grad_enabled() is self.gradients and not torch.is_inference_mode_enabled():
            return _UNCHANGED
        return _autograd(self.gradients)

    def _count(self, waiting: Waiting) -> None:
        if self._single is None and not waiting.is_shared:
            self._single = np.full(len(self.indices), self.evaluations)
        if self._single is not None:
            np.add.at(self._single, waiting.rows(), 1)
        self.evaluations += len(waiting.requests)

    def _check_end(self, end: Tensor) -> None:
        if end.shape != (len(self.indices), *self.shape) or end.dtype is not self.dtype:
            raise PluginError(
                f"{self.spec.name} returned {end.dtype} of shape {tuple(end.shape)} for a state of {self.dtype} and "
                f"shape {(len(self.indices), *self.shape)}; a sampler must keep both"
            )
        if self.check_finite and not end.sum().isfinite().item():
            raise NonFiniteError(f"{self._setup.label}: the sample is not finite after the last step")

    @property
    def result(self) -> Result:
        """The `Result` of the finished run. Its samples are on the CPU; `x` has them on the states' device.

        Raises:
            UsageError: the run is not over.
        """
        if self._run.end is None:
            waits = f"is not over: it waits for evaluation {self.evaluations + 1}"
            failed = "has no result: it ended with an error"
            raise UsageError(f"this run of {self.spec.name} {failed if self.is_done else waits}")
        return result_of(self)

    def __repr__(self) -> str:
        place = "done" if self.is_done else f"at evaluation {self.evaluations + 1}"
        return f"<Stepper of {self.spec.name!r}, {len(self.indices)} samples of shape {self.shape}, {place}>"


_UNCHANGED = nullcontext()


@contextmanager
def _autograd(gradients: bool) -> Iterator[None]:
    """The autograd mode of a sampler's computations."""
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield
