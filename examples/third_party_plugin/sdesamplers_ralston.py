"""A plugin for sdesamplers: one sampler, one spacing, and the two hooks that announce them."""

import numpy as np

from sdesamplers import hookimpl, sampler, spacing


@sampler("ralston", order=2, evaluations=2, reference="Ralston 1962, Runge-Kutta methods with minimum error bounds")
def ralston(x, path):
    """Ralston's second-order method on the probability-flow ODE.

    k1 = v(x, t);  k2 = v(x + 2/3 h k1, t + 2/3 h);  x <- x + h (k1 / 4 + 3/4 k2). Among the two-stage methods of
    second order it has the smallest bound on the local error. The step into sigma = 0 is Euler's.
    """
    for now, then in path.steps:
        h = then.time - now.time
        out = yield x, now
        x, slope = out.x, out.velocity
        if not then.is_clean:
            ahead = yield x + 2 / 3 * h * slope, path.at(now.time + 2 / 3 * h)
            slope = slope / 4 + ahead.velocity * 3 / 4
        x = x + h * slope
    return x


@spacing("cosine-lambda", reference="Trefethen 2000, Spectral Methods in MATLAB, chapter 5 (Chebyshev points)")
def cosine_lambda(span, count):
    """Chebyshev points of lambda = log(alpha/sigma): denser towards both ends.

    lambda_i = lambda_start + (lambda_end - lambda_start) (1 - cos(pi i / (count - 1))) / 2.
    """
    first, last = np.log(span.ratios())  # log(sigma/alpha) = -lambda
    share = (1 - np.cos(np.linspace(0, np.pi, count))) / 2
    return span.at_ratios(np.exp(first + (last - first) * share))


@hookimpl
def sdesamplers_samplers():
    """The samplers that this package adds."""
    return [ralston]


@hookimpl
def sdesamplers_spacings():
    """The spacings that this package adds."""
    return [cosine_lambda]
