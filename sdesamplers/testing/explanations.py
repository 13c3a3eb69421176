"""What a failure of each check means, and where to look: the texts of `sdesamplers check --explain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Kind = Literal["sampler", "spacing", "noise source", "process", "model"]
"""What the conformance kit checks."""


class Explanation(NamedTuple):
    """The text about one check: what its failure means for users, and where the mistake usually is."""

    meaning: str
    look: str


_REFERENCE = Explanation(
    "Users cannot find out where it comes from or what an option does.",
    "Pass reference= to the decorator (authors, year, equation or algorithm), and name each option in the docstring.",
)
_OPTIONS = Explanation(
    "An option does nothing: whatever value users set, the result is the same.",
    "Search the function for the option's name. It is often read once and not used, or overwritten before it is used.",
)

SAMPLER = {
    "declaration": _REFERENCE,
    "shape and dtype": Explanation(
        "The state changes its shape or dtype on the way, so the sampler fails on images, or loses float64.",
        "Look for sums and reshapes over dimensions other than the first, .float(), and NumPy arrays of float64 that "
        "are multiplied with the state. Numbers of points are Python floats, which keep the dtype.",
    ),
    "finite": Explanation(
        "On some process, coordinates or number of steps the sampler raises, or its samples are NaN.",
        "Look at the two singular ends: log(alpha/sigma) is infinite for now.is_pure_noise and for then.is_clean. "
        "Use out.step_to(then) there. Also try a run of a single step, which has no earlier prediction.",
    ),
    "reproducible": Explanation(
        "The same seed does not give the same sample, or different seeds give the same.",
        "Take random numbers from path.draw alone (no torch.randn, no np.random), and keep nothing between runs: no "
        "module variables, no mutable defaults, no cache.",
    ),
    "prediction types": Explanation(
        "The result depends on how the network is parametrised, so it is wrong for most models.",
        "Use out.x0, out.eps, out.score or out.velocity, never out.raw.",
    ),
    "states left alone": Explanation(
        "A tensor that somebody else holds is changed: the caller's start, a stored state, or a state of a callback.",
        "Look for operations in place (x += ..., x.add_(...)) on x itself; write x = x + ...",
    ),
    "batch independence": Explanation(
        "A sample depends on the samples that are computed with it, so results change with the batch size.",
        "Look for .max(), .mean(), .norm() and similar calls without a dimension. Reduce over all dimensions but the "
        "first: x.flatten(1).norm(dim=1).",
    ),
    "free steps": Explanation(
        "With adaptive steps, samples of a batch influence each other's steps, or evaluations are counted wrongly.",
        "Control the error of each sample by itself; plugins/_adaptive.py has the loop that the built-in samplers use.",
    ),
    "evaluations": Explanation(
        "A budget (nfe=) is exceeded or not used, since the declared number of evaluations per step is wrong.",
        "Count the yields of one step, and declare it: evaluations=2. Declare None if it depends on the state.",
    ),
    "options": _OPTIONS,
    "edits": Explanation(
        "Callbacks and pipelines that edit the state (inpainting, guidance of their own) have no effect.",
        "Write x = out.x after each yield of the state, and continue from it instead of the earlier x.",
    ),
    "push = pull": Explanation(
        "In a diffusers pipeline the sampler gives other samples than sds.sample.",
        "The function must depend on its arguments and on what it receives alone, not on who calls it.",
    ),
    "resumed": Explanation(
        "A copied or resumed run gives other samples: something is kept outside of the generator.",
        "Keep earlier slopes and predictions in local variables, not in module variables, attributes or caches.",
    ),
    "point mass": Explanation(
        "Samples are not clean: the run ends before sigma = 0, or noise is left in the last step.",
        "Loop over all of path.steps, and make the last step (then.is_clean) end on x0: out.step_to(then).",
    ),
    "log-probabilities": Explanation(
        "The exact log-probability of a run is wrong, so policy gradients are biased.",
        "Let path.draw add all noise, and draw the same number of times in every run.",
    ),
    "densities": Explanation(
        "A step of a sampler with noise has no log-probability, or one of another distribution: policy gradients and "
        "importance weights would be wrong.",
        "Write a step as one x = path.draw(mean, std, now, then), whose mean does not depend on the draw. A sampler "
        'whose step is no Gaussian transition declares the reason: @sampler(..., no_density="draws twice a step").',
    ),
    "noise": Explanation(
        "Users are promised a deterministic sampler that is random, or the reverse.",
        "Declare stochastic=True if it calls path.draw with a standard deviation above 0 by default; check the options "
        "that noiseless= lists.",
    ),
    "plain SDE": Explanation(
        "On a process without alpha and sigma it fails with an unrelated error, or refuses although it need not.",
        'Declare needs=("marginals",) if it uses x0, eps, alpha, sigma, lam or ratio.',
    ),
    "ODE order": Explanation(
        "The method converges at another order than declared, so more steps buy less (or more) than users expect.",
        "If it is lower, compare coefficients with the paper: the sign and size of h, which of now and then is meant, "
        "uneven steps, stale history. If it is higher, declare the higher order.",
    ),
    "weak order": Explanation(
        "Mean or variance of the samples converge at another order than declared.",
        "Compare the standard deviation in path.draw with the paper: a variance in place of its root, the noise of the "
        "wrong end of the step. Declare order=None if steps are no affine maps of Gaussian data.",
    ),
    "strong order": Explanation(
        "Along one Brownian path the samples converge at another order than declared.",
        "Most methods have strong order 1 with additive noise; omit the declaration if the paper does not claim it.",
    ),
    "distribution": Explanation(
        "With many steps the samples do not have the model's distribution.",
        "A term is missing or scaled wrongly. If it is meant (guidance, restricted methods), declare it: limits=...",
    ),
    "float32": Explanation(
        "With many steps in float32, errors of rounding become visible.",
        "Look for large terms that cancel in the state; compute coefficients as Python floats with expm1 and log1p.",
    ),
    "tolerance": Explanation(
        "A smaller tolerance does not make the result more accurate.",
        "Check that rtol and atol reach the error estimate, and that a rejected step is repeated with a smaller one.",
    ),
}

SPACING = {
    "declaration": _REFERENCE,
    "size": Explanation(
        "Runs on this spacing fail: it returns another number of times than asked for, or values that are no numbers.",
        "Return `count` values (np.linspace(start, end, count)). With count=1 the only time is the first; look for "
        "divisions by count - 1, and for logarithms of 0, as a process may start at alpha = 0.",
    ),
    "falling": Explanation(
        "Runs fail: a grid must run from noise to data, and no two times may be equal.",
        "Reverse the order (times[::-1]); if times were rounded to whole timesteps, two of them may have become equal.",
    ),
    "range": Explanation(
        "The network would be evaluated at times at which it was not trained.",
        "Use span.start and span.end instead of numbers such as 0, 1 or 1000; after powers and exponentials, set the "
        "first and last time exactly.",
    ),
    "ends": Explanation(
        "The grid leaves out an end that it promises, or promises less than it has.",
        'Declare reaches="start", "end" or "neither" in @spacing, or set times[0] = span.start, times[-1] = span.end. '
        "span.ends_clean is True if the run takes one more step, to sigma = 0.",
    ),
    "start times": Explanation(
        "Runs that start from a partly noised input (start_time) begin at the wrong time.",
        "Use span.start, not span.process.t_max.",
    ),
    "repeatable": Explanation(
        "Two equal runs have different grids, so results cannot be repeated.",
        "Return a new array every time, and use no random numbers and no module variables.",
    ),
    "refined": Explanation(
        "More steps do not make the run more accurate, since the longest step stays.",
        "Look for a part of the range that has a fixed number of points whatever the count is.",
    ),
    "options": _OPTIONS,
    "sampled": Explanation(
        "Runs on this spacing raise an error or give NaN.",
        "Raise a ValueError with the reason for processes on which it is not defined; see span.ratios.",
    ),
}

NOISE = {
    "declaration": _REFERENCE,
    "shape and dtype": Explanation(
        "Runs with this noise fail, for one sample or for several.",
        "Return (N, *source.shape), or (len(rows), *source.shape) if rows is given; source.draw has this shape.",
    ),
    "keyed": Explanation(
        "Samples change with the batch, or cannot be repeated.",
        "Draw from source.draw(stream, position) alone. It is a function of seed, sample index, stream and position.",
    ),
    "rekeyed": Explanation(
        "After resampling (steer) or branching, samples continue with the noise of other samples.",
        "Do not draw in advance. If draws are kept, drop them if source.version has changed.",
    ),
    "rows": Explanation(
        "Samplers that evaluate a part of the batch (adaptive steps) get the noise of other samples.",
        "Pass rows to source.draw, count draws for each sample, or raise a UsageError if rows is not None.",
    ),
    "skipped": Explanation(
        "A replayed run has other noise than the run itself.",
        "A method skip(start, end, rows) must count the draw as a call does; without it, every draw is made.",
    ),
    "moments": Explanation(
        "Samples have too much or too little noise, so they do not have the model's distribution.",
        "Divide by the standard deviation of what you add up. If the noise is meant to differ, declare limits=...",
    ),
    "elements": Explanation(
        "Elements of a sample are correlated, for which the model was not trained.",
        "Declare how this changes the samples: limits=..., or draw each element by itself.",
    ),
    "intervals": Explanation(
        "The noises of different steps are correlated, so their variances do not add up.",
        "Use another position of the stream for each step; a stream of its own (AUXILIARY) for each purpose.",
    ),
    "additive": Explanation(
        "It is declared as a Brownian motion, whose increments add up, and is none; or the reverse.",
        "Compute z(a, b) as (W(b) - W(a)) / sqrt(|b - a|) with one W for each sample, or omit additive=True.",
    ),
    "options": _OPTIONS,
}

PROCESS = {
    "range": Explanation("The process has no range of times.", "Set t_min < t_max as class attributes, in its time."),
    "arrays": Explanation(
        "Some functions work for a float only, or give other values for an array.",
        "Write them with NumPy's functions: np.cos and np.where, not math.cos and `if`.",
    ),
    "values": Explanation(
        "alpha, sigma or a slope is not finite or negative inside of the range.",
        "Move t_min or t_max away from the singular time; the message has the time.",
    ),
    "direction": Explanation(
        "Time runs from noise to data, and every sampler would integrate backwards.",
        "Keep t_min below t_max, and pass sds.reversed(process) if the network's time runs the other way.",
    ),
    "ends": Explanation(
        "Sampling starts from noise at a time at which states still contain the data, or from another noise level.",
        "Set t_max to the time of the noise, and compare prior.std with sigma(t_max).",
    ),
    "slopes": Explanation(
        "d_alpha or d_sigma is not the derivative, so samples of ODE methods are wrong without an error.",
        "Differentiate alpha and sigma again; the message has the time, the value and the right value.",
    ),
    "inverse": Explanation(
        "Spacings in sigma/alpha (karras, logsnr) put their points at wrong times.",
        "Solve sigma(t)/alpha(t) = ratio for t once more; ratio may be 0 or infinite.",
    ),
    "derived": Explanation(
        "A method that the class overrides contradicts alpha and sigma.",
        "Remove the override, or correct it; the inherited methods follow from the five functions.",
    ),
    "drift": Explanation(
        "drift is not the drift of alpha, so the forward SDE does not lead to the noised data.",
        "f = d_alpha/alpha, and drift(x, t) = f x. Remove the override unless it is faster.",
    ),
    "diffusion": Explanation(
        "diffusion is not the diffusion of sigma: stochastic samplers add the wrong amount of noise.",
        "g^2 = d(sigma^2)/dt - 2 f sigma^2. A common slip is to return g^2 instead of g.",
    ),
    "perturb": Explanation(
        "Training data are noised with other numbers than sampling assumes.",
        "perturb is alpha(t) x0 + sigma(t) noise; one time for each sample must be expanded to x0's shape.",
    ),
    "prior": Explanation(
        "Likelihoods are wrong: the prior's density is not that of its draws.",
        "Return sds.Prior(std), or let sample and log_prob of your own class use the same std.",
    ),
    "copies": Explanation(
        "Jobs on several processes and stored schedulers fail or use another process.",
        "Define the class at the top level of a module, and keep no lambdas or open files in attributes.",
    ),
    "transport": Explanation(
        "The exact solution of the probability-flow ODE is not reached.",
        "See the checks slopes, inverse and derived, one of which usually fails too.",
    ),
    "sampled": Explanation(
        "Runs with default settings fail on this process.",
        "Check preferred_spacing (a registered name), t_min and t_max.",
    ),
}

MODEL = {
    "declaration": Explanation(
        "An attribute is missing or invalid.",
        "Set process, prediction, shape, dtype and name, or use FunctionModel or sds.wrap, which do it.",
    ),
    "shape and dtype": Explanation(
        "Runs fail, or are NaN, at some time of the process.",
        "Return one tensor of the state's shape. If it is not finite at an end, move t_min or t_max, or look for "
        "divisions by sigma and alpha.",
    ),
    "deterministic": Explanation(
        "The same state gives different predictions, so no result can be repeated.",
        "Look for dropout outside of evaluation mode and for random numbers in the forward pass.",
    ),
    "batch independence": Explanation(
        "A prediction depends on the other samples of the batch.",
        "Look for batch normalisation in training mode, and for means or maxima over the whole batch.",
    ),
    "times": Explanation(
        "Adaptive and parallel samplers, which evaluate samples at different times, get wrong predictions.",
        "t may be one number or an array (N,); expand it to (N, 1, ..., 1) before it multiplies the state.",
    ),
    "pure": Explanation(
        "It is declared pure and is not, so that stored predictions change later.",
        "Set pure = False (the default); states and predictions are then copied.",
    ),
    "noisy end": Explanation(
        "At t_max the prediction is not what its type implies: probably another prediction type, sign or time.",
        "Compare prediction= with the training loss: epsilon, sample (x0), v, score or flow; and the time that the "
        "network receives with the time that it was trained with.",
    ),
    "clean end": Explanation(
        "At t_min the prediction is not what its type implies: probably another prediction type, sign or time.",
        "Compare prediction= with the training loss, and the time that the network receives at t_min.",
    ),
    "condition": Explanation(
        "Conditions reach the wrong samples, have no effect, or are silently ignored.",
        "condition_for returns one row for each sample; raise a UsageError for conditions that the model cannot take.",
    ),
    "sampled": Explanation(
        "A run with default settings fails, or its samples are far from the range of the data.",
        "See the checks noisy end and clean end; check data_range and the scaling of the data.",
    ),
}

EXPLANATIONS: Mapping[Kind, Mapping[str, Explanation]] = {
    "sampler": SAMPLER,
    "spacing": SPACING,
    "noise source": NOISE,
    "process": PROCESS,
    "model": MODEL,
}
"""Kind -> check -> explanation."""


RAISED = Explanation(
    "It raised an exception, so the check could measure nothing.",
    "The message has the line and, for a sampler, the step and the likely cause: at the first point alpha may be 0, "
    "and at the last sigma is 0. docs/mistakes.md lists frequent messages with their cures.",
)


def explanation(kind: Kind, check: str, *, raised: bool = False) -> Explanation:
    """The text about a failed check; `raised` if it failed because the item raised an exception.

    Raises:
        KeyError: no such check.
    """
    return RAISED if raised else EXPLANATIONS[kind][check]


def explain(kind: Kind, check: str, *, raised: bool = False) -> str:
    """What a failure of a check means and where to look, as one text."""
    found = explanation(kind, check, raised=raised)
    return f"{found.meaning} {found.look}"
