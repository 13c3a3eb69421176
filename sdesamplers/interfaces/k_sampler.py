"""`as_k_sampler`: a sampler in the form of k-diffusion's functions, which ComfyUI and other programs call."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checks import choice, function, one_of_types, shown
from ..errors import ModelError, UsageError
from ..models.base import Model, Output
from ..models.calling import tensor_in
from ..path.noise import check_seed
from ..processes.schedules import EDM, RectifiedFlow
from ..public import public
from ..registry.options import check_options
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from ..sampling.calls import sample
from ..sampling.prepared import prepare
from ..sampling.request import split_arguments
from .denoisers import KINDS, DenoiserModel, kind_of, own_end
from .noise_samplers import CallersGenerators, as_noise_source

KCallback = Callable[[dict[str, Any]], Any]
RUN_ARGUMENTS = ("coordinates", "noise", "noise_options")
"""Arguments of `sample` that are accepted beside the sampler's own options."""


@public
class KSampler:
    """A sampler as a function of k-diffusion's form, created by `as_k_sampler`.

    Attributes:
        sampler: its name, or the `Sampler`.
        model_kind: "ve", "flow", or None if each call finds it out.
        seed: the seed of its noise; None for the one in the call's `extra_args`, or else one from torch's generator.
        options: the sampler's options, and the arguments `coordinates`, `noise` and `noise_options` of `sample`.
    """

    def __init__(
        self, sampler: str | Sampler, model_kind: str | None, seed: int | None, options: Mapping[str, Any]
    ) -> None:
        self.sampler, self.options = sampler, dict(options)
        self.model_kind = None if model_kind is None else choice("model_kind", model_kind, KINDS)
        self.seed = None if seed is None else check_seed(seed)
        self._check(self.options)

    @property
    def spec(self) -> Sampler:
        """The registered sampler."""
        return self.sampler if isinstance(self.sampler, Sampler) else default_registry().resolve(self.sampler).sampler

    @property
    def __name__(self) -> str:
        return f"sample_{self.spec.name.replace('-', '_')}"

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"as_k_sampler({getattr(self.sampler, 'name', self.sampler)!r}{options})"

    def _check(self, options: Mapping[str, Any]) -> None:
        own = {name: value for name, value in options.items() if name not in RUN_ARGUMENTS}
        check_options(own, self.spec.options, f"sampler {self.spec.name!r}")

    def __call__(
        self,
        model: Callable[..., Any],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: KCallback | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: Callable[[Any, Any], Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Run the sampler from x at sigmas[0] to sigmas[-1].

        Args:
            model: called as `model(x, sigma, **extra_args)` with sigma (N,); returns the estimate of x0.
            x: the state (N, *shape) at sigmas[0].
            sigmas: the falling grid, (steps + 1,); its last value may be 0. With fewer than two values x is returned.
            extra_args: further arguments of the model. Tensors in it that have N rows belong to the samples.
            callback: called at the first evaluation of each step with a dictionary of "x" (the state), "i" (the step),
                "sigma" (sigmas[i]), "sigma_hat" (that of the evaluation) and "denoised" (x0).
            disable: True for no progress bar; None for one only on a terminal.
            noise_sampler: the noise of the steps, `noise_sampler(sigma, sigma_next)` of x's shape, in place of the
                library's own. It may draw from torch's global generators.
            **options: the sampler's options, in place of those given before.

        Returns:
            The final state (N, *shape), in x's dtype and on its device.

        Raises:
            UsageError: an invalid argument or grid.
            ModelError: the model's output has another shape, or a CFG++ sampler receives no unguided prediction.
        """
        one_of_types("x", x, Tensor, "a tensor (N, ...)")
        one_of_types("extra_args", extra_args, (Mapping, type(None)), "a dictionary of the model's arguments")
        function("noise_sampler", noise_sampler, "sigma and sigma_next")
        self._check(options)
        options = self.options | options
        grid = as_grid(sigmas)
        if len(grid) < 2:
            return x
        kind, extra_args = self.model_kind or kind_of(model), dict(extra_args or {})
        given = torch.as_tensor(sigmas)
        seed = self._seed(extra_args, noise_sampler is None and (self.spec.stochastic or bool(options)))
        callers = None
        if noise_sampler is not None:
            callers = CallersGenerators()
            options["noise"] = as_noise_source(noise_sampler, x.shape, kind, given, callers)
        evaluate = KModel(model, self.spec, given, extra_args, callback)
        rows = {name: value for name, value in extra_args.items() if belongs_to_samples(value, len(x))}
        denoiser = RowsModel(
            evaluate, process_for(model, kind, grid), x.shape[1:],
            dtype=x.dtype, device=x.device, conditional=bool(rows), name=f"the model of {self.__name__}",
        )  # fmt: skip
        if callback is not None:
            evaluate.per_step = self._evaluations_per_step(denoiser, grid, options)
        start = x if x.dtype in (torch.float32, torch.float64) else x.float()
        shown_bar = sys.stderr.isatty() if disable is None else not disable
        try:
            result = sample(
                denoiser, self.sampler, times=grid, start=start, condition=rows or None, seed=seed, progress=shown_bar,
                **options,
            )  # fmt: skip
        finally:
            if callers is not None:
                callers.restore()  # the run has set the generators back to their state at its beginning
        return result.samples.to(x.dtype)

    def _evaluations_per_step(self, denoiser: Model, grid: list[float], options: Mapping[str, Any]) -> int:
        """The number that the sampler declares, or the observed one if an option changes it (the solver of `churn`)."""
        request, conduct, _ = split_arguments(self.sampler, {"times": grid, **options})
        declared, steps = max(1, self.spec.evaluations or 1), len(grid) - 1
        made = prepare(denoiser, request, conduct).evaluations
        return declared if made is None or declared * (steps - 1) <= made else max(1, math.ceil(made / steps))

    def _seed(self, extra_args: Mapping[str, Any], may_draw: bool) -> int:
        """The seed of a call: this sampler's, the caller's, or if noise may be drawn one from torch's generator."""
        given = extra_args.get("seed") if self.seed is None else self.seed
        if given is not None:
            return check_seed(int(given))
        return int(torch.randint(2**63 - 1, ())) if may_draw else 0


@public
def as_k_sampler(
    sampler: str | Sampler, *, model_kind: str | None = None, seed: int | None = None, **options: Any
) -> KSampler:
    """A sampler as a function `sample(model, x, sigmas, extra_args, callback, disable, **options)`.

    This is the form of k-diffusion's functions, which ComfyUI, A1111, Forge and others call. The grid is the caller's
    `sigmas`. In ComfyUI, `comfy.samplers.KSAMPLER(sds.as_k_sampler("er-sde"))` is a SAMPLER
    ([example](../interfaces.md)).

    Flow models work in the same way: their sigma runs from 1 to 0, and x = (1 - sigma) x0 + sigma noise. CFG++ samplers
    receive the unguided prediction through ComfyUI's hook `sampler_post_cfg_function`.

    Args:
        sampler: the name of a sampler, recipe or alias ("er-sde", "sample_dpmpp_2m"), or a `Sampler`. Of a recipe the
            sampler, its options, coordinates and noise are used.
        model_kind: "ve" for x = x0 + sigma noise, or "flow". By default "flow" for ComfyUI's flow models, otherwise
            "ve".
        seed: of the noise of the steps; by default the entry "seed" of `extra_args`, and otherwise a number from
            torch's generator, on which k-diffusion's noise depends too.
        **options: options of the sampler, and `coordinates`, `noise` and `noise_options` as in `sample`.

    Raises:
        UnknownNameError: no such sampler or option; the message suggests similar names.
        UsageError: a value of the wrong type, or a sampler that needs a density instead of a denoiser.

    Example:
        >>> euler = sds.as_k_sampler("euler")
        >>> denoiser = lambda x, sigma: x / (1 + sigma[:, None] ** 2)  # of data N(0, 1)
        >>> euler(denoiser, 80 * torch.randn(4, 2), torch.tensor([80.0, 10.0, 1.0, 0.0]), disable=True).shape
        torch.Size([4, 2])
    """
    if not isinstance(sampler, str | Sampler):
        raise UsageError(f"sampler must be a name or a Sampler, not {shown(sampler)}; its grid is the caller's sigmas")
    made = KSampler(sampler, model_kind, seed, options)
    for need in ("log_density", "stationary"):
        if need in made.spec.needs:
            raise UsageError(f"{made.spec.name} needs a model with a density, and such functions receive a denoiser")
    return made


class RowsModel(DenoiserModel):
    """A denoiser whose condition is a dictionary of one tensor row per sample, passed on as it is."""

    pure = True

    def condition_for(self, condition: Any, count: int) -> Any:
        return condition


@dataclass
class KModel:
    """A caller's model with the calls of its callback, and the unguided prediction if the sampler needs it.

    A step begins at every evaluation whose number is a multiple of `per_step`.
    """

    model: Callable[..., Any]
    spec: Sampler
    sigmas: Tensor
    extra_args: dict[str, Any]
    callback: KCallback | None
    per_step: int = field(default=1, init=False)
    evaluations: int = field(default=0, init=False)

    def __call__(self, x: Tensor, sigma: Tensor, **rows: Any) -> Tensor | Output:
        """Return the model's x0, (N, *shape), for the state x (N, *shape) at sigma (N,)."""
        arguments, unguided = self.extra_args | rows, list[Tensor]()
        if "unguided" in self.spec.needs:
            arguments["model_options"] = with_hook(arguments.get("model_options"), unguided)
        state = x.clone() if self.callback is not None else x
        output = self.model(x, sigma, **arguments)
        step, rest = divmod(self.evaluations, self.per_step)
        self.evaluations += 1
        if self.callback is not None and rest == 0 and step < len(self.sigmas) - 1:
            denoised = tensor_in(output)
            self.callback(
                {"x": state, "i": step, "sigma": self.sigmas[step], "sigma_hat": sigma.max(), "denoised": denoised}
            )
        if "unguided" not in self.spec.needs:
            return output
        if not unguided:
            raise ModelError(
                f"{self.spec.name} needs the unguided prediction, which ComfyUI's models pass to the functions in "
                "model_options['sampler_post_cfg_function'], but this model did not call them"
            )
        value = tensor_in(output)
        return output if value is None else Output(value, unguided[-1])


def with_hook(model_options: Mapping[str, Any] | None, unguided: list[Tensor]) -> dict[str, Any]:
    """ComfyUI's model options with a function that appends the unguided prediction of every call to `unguided`."""

    def keep(arguments: dict[str, Any]) -> Any:
        unguided.append(arguments["uncond_denoised"])
        return arguments["denoised"]

    options = dict(model_options or {})
    hooks = [*options.get("sampler_post_cfg_function", []), keep]
    return options | {"sampler_post_cfg_function": hooks, "disable_cfg1_optimization": True}


def as_grid(sigmas: Any) -> list[float]:
    """The sigmas as a list of numbers."""
    try:
        grid = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
        return [float(sigma) for sigma in grid]
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"sigmas must be a tensor (steps + 1,), not {shown(sigmas)}") from None


def process_for(model: Any, kind: str, grid: list[float]) -> EDM | RectifiedFlow:
    """The process of a model, up to its own largest sigma if it has one; it contains the grid.

    Churn raises sigma by a factor of sqrt(2) at most, but not above the process's largest.
    """
    if kind == "flow":
        return RectifiedFlow()
    positive = [sigma for sigma in grid if sigma > 0] or [1.0]
    largest = own_end(model, "sigma_max", 2 * max(positive))
    return EDM(min(0.002, min(positive) / 2), max(largest, *positive))


def belongs_to_samples(value: Any, count: int) -> bool:
    """True for a tensor with one row per sample."""
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
