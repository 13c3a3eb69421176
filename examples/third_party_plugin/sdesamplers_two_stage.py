"""A plugin for sdesamplers: one sampler, one spacing, and the two hooks that register them."""

import numpy as np

from sdesamplers import hookimpl, sampler, spacing


@sampler("two-stage", order=2, evaluations=2, reference="Hairer, Norsett & Wanner 1993, section II.1, eq. 1.9'")
def two_stage(x, path, *, node: float = 2 / 3):
    """The explicit two-stage methods of second order on the probability-flow ODE.

        k1 = v(x, t)
        k2 = v(x + c h k1, t + c h)
        x <- x + h ((1 - 1/(2c)) k1 + 1/(2c) k2)

    The step into sigma = 0 is an Euler step.

    Args:
        node: c, in (0, 1]; 1/2 is the midpoint rule, 2/3 Ralston's method, 1 Heun's method.
    """
    if not 0 < node <= 1:
        raise ValueError(f"node must lie in (0, 1], not {node}")
    for now, then in path.steps:
        h = then.time - now.time
        out = yield x, now
        x, slope = out.x, out.velocity
        if not then.is_clean:
            ahead = yield x + node * h * slope, path.at(now.time + node * h)
            slope = slope + (ahead.velocity - slope) / (2 * node)
        x = x + h * slope
    return x


@spacing("cosine-lambda", reference="Trefethen 2000, Spectral Methods in MATLAB, chapter 5 (Chebyshev points)")
def cosine_lambda(span, count):
    """Chebyshev points of lambda = log(alpha/sigma), denser towards both ends.

    lambda_i = lambda_start + (lambda_end - lambda_start) (1 - cos(pi i / (count - 1))) / 2.
    """
    first, last = np.log(span.ratios())  # log(sigma/alpha) = -lambda
    fractions = (1 - np.cos(np.linspace(0, np.pi, count))) / 2
    return span.at_ratios(np.exp(first + (last - first) * fractions))


@hookimpl
def sdesamplers_samplers():
    """The samplers of this package."""
    return [two_stage]


@hookimpl
def sdesamplers_spacings():
    """The spacings of this package."""
    return [cosine_lambda]
