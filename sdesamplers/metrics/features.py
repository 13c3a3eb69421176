"""The feature network with which samples of the embedded model are scored."""

from __future__ import annotations

from torch import Tensor, nn


class FeatureNet(nn.Module):
    """A three-block convolutional classifier whose pooled activations are the feature space.

    Args:
        channels: number of image channels.
        classes: number of labels.
        width: channels of the first block; features have dimension 4 * width.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 16) -> None:
        super().__init__()

        def block(inside: int, outside: int) -> list[nn.Module]:
            return [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]

        self.body = nn.Sequential(
            *block(channels, width),
            nn.MaxPool2d(2),
            *block(width, 2 * width),
            *block(2 * width, 2 * width),
            nn.MaxPool2d(2),
            *block(2 * width, 4 * width),
        )
        self.head = nn.Linear(4 * width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features (N, 4 * width) of images (N, C, H, W) in [-1, 1]."""
        pooled: Tensor = self.body(images).mean((2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Class logits, (N, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits
