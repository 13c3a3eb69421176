"""Inverse problems y = A x + noise, solved with a trained model as the prior and any sampler."""

from .noising import noised as noised
from .operators import Downsample as Downsample
from .operators import Grey as Grey
from .operators import LinearOperator as LinearOperator
from .operators import Mask as Mask
from .operators import Matrix as Matrix
from .posterior import METHODS as METHODS
from .posterior import PosteriorSampling as PosteriorSampling
