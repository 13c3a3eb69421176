"""Train the small classifier whose features are used to score the embedded model, and store features of real images.

    python examples/train_feature_classifier.py --data /usr/share/datasets/fashion-mnist --out runs/metrics

Writes classifier.safetensors, reference.safetensors (features of the 10,000 test images as `reference` and of the
first 10,000 training images as `second`, float16) and config.json with the test accuracy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from train_fashion_mnist import load_images, read_idx

from sdesamplers.metrics import FeatureNet

NETWORK = {"channels": 1, "classes": 10, "width": 16}


def load_labels(folder: Path, split: str) -> torch.Tensor:
    """The labels of one split, int64 (N,)."""
    return torch.from_numpy(read_idx(folder, f"{split}-labels-idx1-ubyte").astype("int64"))


def main() -> None:
    """Train, measure the test accuracy and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the IDX files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int, default=60_000, help="training images to use")
    args = parser.parse_args()

    torch.manual_seed(0)
    images, labels = load_images(args.data), load_labels(args.data, "train")
    net = FeatureNet(**NETWORK)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    batch = 128
    steps = args.epochs * (args.limit // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(steps, 2))
    for epoch in range(args.epochs):
        for rows in torch.randperm(args.limit).split(batch)[: args.limit // batch]:
            loss = torch.nn.functional.cross_entropy(net(images[rows]), labels[rows], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"epoch {epoch + 1}: last loss {loss.item():.3f}", flush=True)
    net.requires_grad_(False).eval()
    test, labels = load_images(args.data, "t10k"), load_labels(args.data, "t10k")
    accuracy = float((torch.cat([net(part) for part in test.split(500)]).argmax(1) == labels).double().mean())

    def features(batch: torch.Tensor) -> torch.Tensor:
        return torch.cat([net.features(part) for part in batch.split(500)]).half().contiguous()

    args.out.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), args.out / "classifier.safetensors")
    save_file({"reference": features(test), "second": features(images[:10_000])}, args.out / "reference.safetensors")
    config = {
        "network": NETWORK,
        "test_accuracy": accuracy,
        "description": "64 features of a classifier trained on Fashion-MNIST, against its 10,000 test images",
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
