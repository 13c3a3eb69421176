"""Sample quality: features, Fréchet distance and sliced Wasserstein distance."""
