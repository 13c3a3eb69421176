"""The `sampler`, `spacing` and `noise_source` decorators for plugin authors, and the classes that they create."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, TypeVar, get_args

from ..errors import PluginError, SdesamplersError, advice, nearest, raised_at, summary
from ..html import details, facts_table, rows_table
from ..public import public
from .options import Option, read_options

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from typing_extensions import Self

    from ..path.noise import Noise, NormalSource
    from ..path.path import Path
    from ..path.span import Span


P = ParamSpec("P")
R = TypeVar("R")
NEEDS = ("unguided", "log_density", "marginals", "stationary")
"""The requirements that a sampler may declare, beyond a prediction at a point."""

SamplerFunction = Callable[..., "Generator[Any, Any, Tensor]"]

Reach = Literal["both", "start", "end", "neither"]
"""The ends of a span that a spacing's grids include."""


class Registered:
    """Base of samplers, spacings and noise sources: a documented function with a name.

    Attributes:
        kind: "sampler", "spacing" or "noise source".
        function, name: the function and its kebab-case name.
        reference: authors, year and equation or algorithm number.
        options: name -> `Option`, the function's keyword-only parameters.
        plugin: the plugin that it comes from, set by the registry.
    """

    kind: ClassVar[str]
    function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any], name: str, reference: str) -> None:
        if not isinstance(name, str) or not name.strip():
            raise PluginError(f"a {self.kind} needs a name, not {name!r}")
        if not function.__doc__:
            raise PluginError(f"{self.kind} {name!r} has no docstring")
        self.function, self.name, self.reference = function, name, reference
        self.options: dict[str, Option] = read_options(function, 2, self.kind)
        self.plugin = ""
        self.__doc__, self.__module__ = function.__doc__, function.__module__

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return inspect.cleandoc(self.__doc__ or "").splitlines()[0]

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r}>"

    def _repr_html_(self) -> str:
        """For notebooks: its declared properties, its options and its docstring."""
        shown = (
            "order",
            "evaluations",
            "stochastic",
            "adaptive",
            "coordinates",
            "spacing",
            "limits",
            "reference",
            "plugin",
        )
        facts: dict[str, Any] = {name: getattr(self, name, None) for name in shown}
        options = ((o.name, o.type_name, repr(o.default)) for o in self.options.values())
        table = rows_table("Options", ("name", "type", "default"), options) if self.options else ""
        text = inspect.cleandoc(self.__doc__ or "")
        return facts_table(f"{self.kind} {self.name}: {self.summary}", facts) + table + details("documentation", text)

    @property
    def is_anothers(self) -> bool:
        """True if it comes from a plugin that is neither the library's own nor part of the running program."""
        return bool(self.plugin) and self.plugin != "local" and not self.is_built_in

    @property
    def is_built_in(self) -> bool:
        """True if it comes with the library."""
        return self.plugin.startswith("sdesamplers:")

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Context for calls of the function: errors from a third-party plugin name the plugin, file and line."""
        try:
            yield
        except (SdesamplersError, ValueError, MemoryError):  # ValueErrors are about options and reported by the caller
            raise
        except Exception as error:
            if not self.is_anothers:
                raise
            raise self.blamed(error) from error

    def blamed(self, error: Exception, more: str = "") -> PluginError:
        """Return a PluginError for an error that the function raised, with plugin, file and line; `more` ends it."""
        place = raised_at(error, self.function.__code__.co_filename)
        return PluginError(f"{self.kind} {self.name!r} of plugin {self.plugin}: {summary(error)}{place}{more}")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self


@public
class Sampler(Registered):
    """A registered sampler: the generator function and its declared properties.

    The conformance kit (`sdesamplers.testing`) measures these properties, and fails if a declaration is wrong.

    Attributes:
        order: order of convergence with default options: of the sample for a deterministic sampler, of its first two
            moments for a stochastic one (weak order). None if no order is claimed.
        evaluations: model evaluations per step. Some steps may need fewer (the one into sigma = 0) or more (starting
            values). None if the number depends on the states, so that `nfe=` cannot be planned.
        stochastic: True if it draws noise with its default options.
        noiseless: options that turn the noise off, for a stochastic sampler that is then an ODE solver.
        ode_order: order of convergence of that ODE solver; `order` by default.
        strong_order: order of convergence along one Brownian path (noise="brownian"), if claimed.
        control: names of the options that control adaptive steps; non-empty for an adaptive sampler, which can run
            without `steps`.
        needs: requirements beyond the prediction: "unguided" (both guided and unguided predictions), "log_density"
            (a model with a known density), "marginals" (alpha and sigma, which a plain SDE does not have),
            "stationary" (a process that leaves its density invariant, such as `LangevinSDE`; not a noising process).
        limits: a short description of how its result deviates from the model's distribution; "" if it does not.
        no_density: why a step is no Gaussian transition with a density, for a stochastic sampler; "" if every step
            that draws noise leads to the drawn state (`Stepper.step`).
        coordinates, spacing: its defaults.
    """

    kind = "sampler"
    function: SamplerFunction

    def __init__(
        self,
        function: SamplerFunction,
        name: str,
        *,
        order: int | None,
        evaluations: int | None = 1,
        stochastic: bool = False,
        noiseless: Mapping[str, Any] | None = None,
        ode_order: int | None = None,
        strong_order: float | None = None,
        control: Sequence[str] = (),
        needs: Sequence[str] = (),
        limits: str = "",
        no_density: str = "",
        reference: str = "",
        coordinates: str = "native",
        spacing: str | None = None,
    ) -> None:
        if not inspect.isgeneratorfunction(function):
            raise PluginError(
                f"sampler {name!r} is not a generator function; it must yield (state, point) for each evaluation"
            )
        super().__init__(function, name, reference)
        self.order, self.evaluations, self.stochastic, self.control = order, evaluations, stochastic, tuple(control)
        self.coordinates, self.spacing = coordinates, spacing
        self.noiseless = None if noiseless is None else dict(noiseless)
        self.ode_order, self.strong_order = ode_order if ode_order is not None else order, strong_order
        self.needs, self.limits, self.no_density = tuple(needs), limits, no_density
        for declaration, given, known in (
            ("needs", needs, NEEDS),
            ("control", control, self.options),
            ("noiseless", tuple(self.noiseless or ()), self.options),
        ):
            _check_declared(name, declaration, given, tuple(known))

    @property
    def adaptive(self) -> bool:
        """True if it can choose its own steps."""
        return bool(self.control)

    def __call__(self, x: Tensor, path: Path, **options: Any) -> Generator[Any, Any, Tensor]:
        return self.function(x, path, **options)


def _check_declared(name: str, declaration: str, given: Sequence[str], known: tuple[str, ...]) -> None:
    """Raise PluginError unless a declaration of the sampler `name` is a sequence of known names."""
    if isinstance(given, str):
        raise PluginError(f"sampler {name!r} declares {declaration}={given!r}; it must be a tuple, ({given!r},)")
    for entry in given:
        if entry not in known:
            listing = f" (known: {', '.join(known)})" if known else " (it has no options)"
            kind = "need" if declaration == "needs" else f"option for {declaration}"
            raise PluginError(
                f"sampler {name!r} declares the unknown {kind} {entry!r}{advice(nearest(entry, known))}{listing}"
            )


@public
class Spacing(Registered):
    """A registered spacing: a function of a `Span` and a number of points that returns native times.

    Attributes:
        reaches: the ends of the span that are always points of the grid, with the default options: "both", "start"
            (the grid may end above span.end, and the run steps from there to sigma = 0), "end" or "neither". The
            conformance kit measures it.
    """

    kind = "spacing"

    def __init__(
        self,
        function: Callable[..., Sequence[float] | np.ndarray],
        name: str,
        reference: str = "",
        *,
        reaches: Reach = "both",
    ) -> None:
        super().__init__(function, name, reference)
        if reaches not in get_args(Reach):
            raise PluginError(f"spacing {name!r}: reaches must be one of {', '.join(get_args(Reach))}, not {reaches!r}")
        self.reaches = reaches

    def __call__(self, span: Span, count: int, **options: Any) -> np.ndarray:
        import numpy as np  # listings of the registry do without

        with self.answering():
            times = self.function(span, count, **options)
        if times is None:
            raise PluginError(f"spacing {self.name!r} returned None; is `return` missing?")
        try:
            found = np.asarray(times)
            wide = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError) as error:  # no numbers, or a tensor with gradients or of a GPU
            raise PluginError(
                f"spacing {self.name!r} returned {type(times).__name__}, which is no array of {count} times ({error})"
            ) from None
        if found.dtype in (np.float16, np.float32):
            raise PluginError(
                f"spacing {self.name!r} returned times in {found.dtype}, which rounds span.start and span.end; compute "
                "in float64, as NumPy does by default (with torch: dtype=torch.float64)"
            )
        return wide


@public
class NoiseSource(Registered):
    """A registered source of the noise that steps draw: a function of a `NormalSource` that returns a `Noise`.

    Attributes:
        limits: a short description of how it changes the sampled distribution; "" if it does not, as with independent
            standard normals. Log-probabilities can be recorded only with sources whose limits are "".
        additive: True if the noise of a step is the sum of the noises of its parts, as for the increments of a Brownian
            motion: sqrt(c - a) z(a, c) = sqrt(b - a) z(a, b) + sqrt(c - b) z(b, c). Measured by the conformance kit.
    """

    kind = "noise source"
    function: Callable[..., Noise]

    def __init__(
        self,
        function: Callable[..., Noise],
        name: str,
        *,
        limits: str = "",
        reference: str = "",
        additive: bool = False,
    ) -> None:
        super().__init__(function, name, reference)
        self.limits, self.additive = limits, additive

    def __call__(self, source: NormalSource, shortest: float, **options: Any) -> Noise:
        with self.answering():
            noise = self.function(source, shortest, **options)
        if not callable(noise):
            advice = "is `return` missing?" if noise is None else "return a function noise(start, end, rows=None)"
            raise PluginError(f"noise source {self.name!r} returned {type(noise).__name__}; {advice}")
        return noise


def _order_declared(decorator: Callable[P, R]) -> Callable[P, R]:
    """Raise PluginError if `order` is missing, which the signature requires for type checkers and readers."""

    @wraps(decorator)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        name = args[0] if args else kwargs.get("name")
        _check_called("sampler", name, ", order=1")
        if name is not None and "order" not in kwargs:
            raise PluginError(f"sampler {name!r} declares no order; write order=1, or order=None if it claims no order")
        return decorator(*args, **kwargs)

    return checked


@public
@_order_declared
def sampler(name: str, *, order: int | None, **declared: Any) -> Callable[[SamplerFunction], Sampler]:
    """Turn a generator function `f(x, path, *, options...)` into a sampler; keywords as in `Sampler`.

    The function yields `(state, point)` for each model evaluation, receives a `Prediction`, and returns the sample. It
    may yield a list of such pairs to have them evaluated in one batch.

    Raises:
        PluginError: no name or order, an unknown keyword, or a function that is not a generator function.
    """
    known = [each for each in inspect.signature(Sampler).parameters if each not in ("function", "name")]
    for keyword in declared:
        if keyword not in known:
            raise PluginError(
                f"sampler {name!r}: there is no declaration {keyword!r}{advice(nearest(keyword, known))} "
                f"(known: {', '.join(known)})"
            )
    return lambda function: Sampler(function, name, order=order, **declared)


@public
def spacing(name: str, *, reference: str = "", reaches: Reach = "both") -> Callable[[Callable[..., Any]], Spacing]:
    """Turn `f(span, count, *, options...)` into a spacing. The function returns `count` native times, decreasing from
    span.start to span.end; a grid that leaves out one of them declares it (`Spacing.reaches`)."""
    _check_called("spacing", name)
    return lambda function: Spacing(function, name, reference, reaches=reaches)


@public
def noise_source(
    name: str, *, limits: str = "", reference: str = "", additive: bool = False
) -> Callable[[Callable[..., Noise]], NoiseSource]:
    """Turn `f(source, shortest, *, options...)` into a noise source.

    The function returns a callable `noise(start, end, rows)` that returns the noise of a step between two values of
    lambda as (N, *shape); every number must be a pure function of the `NormalSource`'s keyed draws. `shortest` is the
    length of the shortest step in lambda. If the returned object has a method `start_noise()`, the run starts from its
    result; otherwise it starts from the source's standard normal.
    """
    _check_called("noise_source", name)
    return lambda function: NoiseSource(function, name, limits=limits, reference=reference, additive=additive)


def _check_called(decorator: str, name: Any, more: str = "") -> None:
    """Raise PluginError if a decorator is used without its arguments, so that it receives the function as the name."""
    if inspect.isfunction(name):
        meant = name.__name__.replace("_", "-")
        raise PluginError(f'@{decorator} needs arguments: write @{decorator}("{meant}"{more})')
