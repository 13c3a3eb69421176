"""Formulas that combine a conditional and an unconditional prediction, for `Guided(combine=NAME)`.

Each takes (conditional, unconditional, scale) and returns the guided prediction, all (n, *shape) in the model's own
type. With scale 1 each returns the conditional prediction, "frequency-decoupled" if `lower` is 1 too. Samples are
independent of each other, and the result depends on the two predictions alone, so a guided model is still a function of
state and time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from ..checks import number, numbers, unknown_keyword
from ..errors import UnknownNameError, UsageError

Combine = Callable[[Tensor, Tensor, float], Tensor]
"""(conditional, unconditional, scale) -> guided, all (n, *shape) in the model's own prediction type."""


@dataclass(frozen=True)
class Projected:
    """Adaptive projected guidance, without its momentum (Sadat et al. 2024, arXiv:2410.02416).

    conditional + (scale - 1) (d_orthogonal + eta d_parallel), where d is conditional - unconditional, shortened to the
    norm `norm` if it is longer, and split into the part along the conditional prediction and the rest.

    Attributes:
        eta: weight of the part along the conditional prediction, which saturates images.
        norm: the largest norm of d over all dimensions of a sample; 0 for no limit.
    """

    eta: float = 0.0
    norm: float = 15.0

    def __post_init__(self) -> None:
        number("eta", self.eta)
        if number("norm", self.norm) < 0:
            raise UsageError(f"norm must be 0, for no limit, or positive, not {self.norm}")

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        difference = conditional - unconditional
        if self.norm:
            length = dot(difference, difference).sqrt()
            difference = difference * torch.where(length > self.norm, self.norm / length, 1.0).to(difference.dtype)
        along = ratio(dot(difference, conditional), dot(conditional, conditional)).to(difference.dtype)
        return conditional + (scale - 1) * (difference - (1 - self.eta) * along * conditional)


@dataclass(frozen=True)
class ZeroStar:
    """CFG-Zero*: the unconditional prediction is first scaled to fit the conditional one.

    s u + scale (c - s u), where s = <c, u> / |u|^2 (Fan et al. 2025, arXiv:2503.18886). The paper's zero
    initialisation is a start at a later time.
    """

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        factor = ratio(dot(conditional, unconditional), dot(unconditional, unconditional))
        fitted = factor.to(unconditional.dtype) * unconditional
        return fitted + scale * (conditional - fitted)


@dataclass(frozen=True)
class Tangential:
    """Tangential damping: the unconditional prediction is projected first (Kwon et al. 2025, arXiv:2503.18137).

    It is projected onto the first right singular vector of the matrix of both predictions. With the Gram matrix
    [[cc, cu], [cu, uu]] this vector is cos(a) c + sin(a) u with tan(2a) = 2 cu / (cc - uu), and the projection
    sin(a) (cos(a) c + sin(a) u).
    """

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        cc, cu, uu = (dot(a, b) for a, b in ((conditional,) * 2, (conditional, unconditional), (unconditional,) * 2))
        size = torch.hypot(cc - uu, 2 * cu)
        on_conditional = ratio(cu, size)
        on_unconditional = torch.where(size > 0, (1 - ratio(cc - uu, size)) / 2, 1.0)  # equal values: no first vector
        dtype = conditional.dtype
        projected = on_conditional.to(dtype) * conditional + on_unconditional.to(dtype) * unconditional
        return projected + scale * (conditional - projected)


@dataclass(frozen=True)
class MagnitudeAware:
    """MAMBO-G: less guidance if the two predictions differ much (Zhu et al. 2025, arXiv:2508.03442).

    u + w (c - u) with w = 1 + (scale - 1) exp(-alpha |c - u| / |u|).

    Attributes:
        alpha: how fast the guidance decays with the relative difference.
    """

    alpha: float = 8.0

    def __post_init__(self) -> None:
        number("alpha", self.alpha)

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        difference = conditional - unconditional
        relative = ratio(dot(difference, difference), dot(unconditional, unconditional)).sqrt()
        weight = 1 + (scale - 1) * torch.exp(-self.alpha * relative)
        return unconditional + weight.to(difference.dtype) * difference


@dataclass(frozen=True)
class FrequencyDecoupled:
    """A scale for each level of a Laplacian pyramid (Sadat et al. 2025, arXiv:2506.19713); for images (n, C, H, W).

    Attributes:
        lower: the scales of the lower frequencies, from the second level to the coarsest; `scale` is that of the first.
    """

    lower: Sequence[float] = (5.0,)

    def __post_init__(self) -> None:
        given = numbers("lower", self.lower, "a list of scales, one for each lower level", dims=(1,))
        if not len(given):
            raise UsageError("lower must have the scale of one or more lower levels")
        object.__setattr__(self, "lower", tuple(float(scale) for scale in given))

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        if conditional.dim() != 4:
            raise UsageError(
                f"frequency-decoupled guidance is for images (N, C, H, W), not for shape {tuple(conditional.shape)}"
            )
        scales = (scale, *self.lower)
        levels = laplacian_pyramid(conditional - unconditional, len(scales))
        return unconditional + from_pyramid([each * level for each, level in zip(scales, levels, strict=True)])


METHODS: dict[str, type[Any]] = {
    "apg": Projected,
    "cfg-zero-star": ZeroStar,
    "tangential": Tangential,
    "magnitude-aware": MagnitudeAware,
    "frequency-decoupled": FrequencyDecoupled,
}
OF_DIFFUSERS = {
    "AdaptiveProjectedGuidance": "apg",
    "ClassifierFreeZeroStarGuidance": "cfg-zero-star",
    "TangentialClassifierFreeGuidance": "tangential",
    "MagnitudeAwareGuidance": "magnitude-aware",
    "FrequencyDecoupledGuidance": "frequency-decoupled",
}
"""The classes of diffusers' guiders with these formulas."""


def method(name: str, options: Mapping[str, Any]) -> Combine:
    """The formula of a name, with its options.

    Raises:
        UnknownNameError: no such name or option; the message suggests similar names.
        UsageError: an invalid option.
    """
    name = OF_DIFFUSERS.get(name, name)
    if name not in METHODS:
        raise UnknownNameError("combine", name, METHODS, f" (known: {', '.join(METHODS)}, or a function)")
    known = [field.name for field in fields(METHODS[name])]
    for option in options:
        if option not in known:
            raise unknown_keyword(f"combine={name!r}", option, known)
    made: Combine = METHODS[name](**options)
    return made


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The scalar product of each sample, in float64, of shape (n, 1, ..., 1)."""
    product = (a.double() * b.double()).flatten(1).sum(1)
    return product.view(-1, *(1,) * (a.dim() - 1))


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below; 0 if below is 0."""
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)


def laplacian_pyramid(image: Tensor, levels: int) -> list[Tensor]:
    """Images (n, C, H, W) as `levels` levels, each half as wide, that `from_pyramid` adds up (Burt & Adelson 1983)."""
    pyramid = []
    for _ in range(levels - 1):
        height, width = image.shape[2:]
        if min(height, width) < 4:
            raise UsageError(f"an image of {height} x {width} has too few pixels for another level")
        smaller = interpolate(blurred(image), size=(height // 2, width // 2), mode="bilinear", align_corners=False)
        pyramid.append(image - enlarged(smaller, image))
        image = smaller
    return [*pyramid, image]


def from_pyramid(pyramid: Sequence[Tensor]) -> Tensor:
    """The images (n, C, H, W) of a Laplacian pyramid."""
    image = pyramid[-1]
    for level in pyramid[-2::-1]:
        image = level + enlarged(image, level)
    return image


def enlarged(image: Tensor, like: Tensor) -> Tensor:
    """Images in the size of the level above."""
    return blurred(interpolate(image, size=like.shape[2:], mode="bilinear", align_corners=False))


def blurred(image: Tensor) -> Tensor:
    """Images (n, C, H, W) filtered by (1, 4, 6, 4, 1) / 16 in both directions, reflected at the edges."""
    kernel = torch.tensor([1.0, 4, 6, 4, 1], dtype=image.dtype, device=image.device) / 16
    channels = image.flatten(0, 1)[:, None]
    padded = pad(channels, (2, 2, 2, 2), mode="reflect")
    return conv2d(padded, torch.outer(kernel, kernel)[None, None]).view(image.shape)
