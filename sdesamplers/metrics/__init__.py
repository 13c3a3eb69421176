"""Sample quality: Fréchet and sliced Wasserstein distance, in features of a small classifier or InceptionV3."""

from .distances import frechet_distance, gaussian_statistics, sliced_wasserstein
from .features import FeatureNet
from .inception import InceptionScorer
from .scorer import FeatureScorer, Score, Scorer

__all__ = [
    "FeatureNet",
    "FeatureScorer",
    "InceptionScorer",
    "Score",
    "Scorer",
    "frechet_distance",
    "gaussian_statistics",
    "sliced_wasserstein",
]
