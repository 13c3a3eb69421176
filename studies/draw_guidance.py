"""Draw the picture of docs/guidance.md: the embedded class-conditional network at four guidance scales.

python studies/draw_guidance.py docs/images/guidance.png     (half a minute on one core)
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import sdesamplers as sds

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FILE = Path(__file__).parents[1] / "docs/images/guidance.png"
SCALES = (0.0, 1.0, 2.0, 4.0)


def main() -> None:
    """Sample and draw."""
    model = sds.load("fashion-mnist-labels", channels_last=True)
    figure, axes = plt.subplots(len(SCALES), 10, figsize=(10, 1.1 * len(SCALES)), layout="constrained")
    for row, scale in zip(axes, SCALES, strict=True):
        run = {"nfe": 20, "num_samples": 10, "seed": 1, "condition": list(range(10)), "guidance_scale": scale}
        samples = sds.sample(model, "quality", **run).samples
        for axis, sample, label in zip(row, samples, CLASSES, strict=True):
            axis.imshow(sample[0], cmap="gray", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
            if scale == SCALES[0]:
                axis.set_title(label, fontsize=9)
        row[0].set_ylabel("no label" if scale == 0 else f"scale {scale:g}")
    figure.savefig(FILE, dpi=100)
    print(FILE)


if __name__ == "__main__":
    main()
