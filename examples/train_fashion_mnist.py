"""Train the embedded models: epsilon-predicting UNet2DModels on Fashion-MNIST (28x28 grey).

    python examples/train_fashion_mnist.py --data /usr/share/datasets/fashion-mnist --out runs/fashion-mnist
    python examples/train_fashion_mnist.py --data /usr/share/datasets/fashion-mnist --out runs/fashion-mnist-labels \
        --labels --begin-from runs/fashion-mnist/pipeline

The folder --data contains the four IDX files of Fashion-MNIST (Xiao et al. 2017; MIT licence), gzipped or not; Debian's
package `dataset-fashion-mnist` installs them. Training uses accelerate (one CPU, one GPU or `accelerate launch`), keeps
an exponential moving average of the weights, saves a checkpoint every `--checkpoint-every` seconds and on SIGTERM or
Ctrl-C, and continues from `--out` when run again. The result is a folder in diffusers' pipeline layout,
`<out>/pipeline`, which `sdesamplers.load` and `DDPMPipeline.from_pretrained` can load.

Recipe: DDPM's linear schedule (Ho et al. 2020, section 4) and the unweighted epsilon loss (eq. 14), but with half of
the timesteps drawn where log(sigma/alpha) is near the scale of the data (as in Karras et al. 2022, table 1), where a
small network has most to learn.

With `--labels` the network has the ten classes as labels 0 to 9. For one image in ten the label is replaced by 10, "no
label", so that the same network gives the unconditional prediction of classifier-free guidance (Ho & Salimans 2022,
algorithm 1). `--begin-from` copies the weights of a pipeline, with or without labels, before the first image.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import signal
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch.nn.attention import SDPBackend, sdpa_kernel


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Read one IDX file (`name` or `name`.gz): a big-endian header, then unsigned bytes."""
    for path, opener in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
        if path.exists():
            with opener(path, "rb") as file:
                raw = file.read()
            dimensions = raw[3]
            shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4)
            return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    raise SystemExit(
        f"{folder} contains neither {name} nor {name}.gz (Debian: apt-get install dataset-fashion-mnist, "
        "then --data /usr/share/datasets/fashion-mnist)"
    )


def load_images(folder: Path, split: str = "train") -> torch.Tensor:
    """The images of one split ("train" or "t10k") as a float tensor (N, 1, 28, 28) in [-1, 1]."""
    pixels = read_idx(folder, f"{split}-images-idx3-ubyte")
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).unsqueeze(1)


NO_LABEL = 10
"""The label that stands for "no label"."""
DROPPED = 0.1
"""Fraction of the images whose label is replaced by `NO_LABEL`."""


def load_labels(folder: Path, split: str = "train") -> torch.Tensor:
    """The classes, 0 to 9, of the images of one split, int64 (N,)."""
    return torch.from_numpy(read_idx(folder, f"{split}-labels-idx1-ubyte").astype(np.int64))


def make_unet(labels: bool = False) -> UNet2DModel:
    """A network of 1.81 million parameters with attention at 7x7 only, small enough to ship and to run on a CPU.

    With labels it has 11 classes, whose embeddings are 0 at first: it then begins as a network without labels.
    """
    unet = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=NO_LABEL + 1 if labels else None,
    )
    if labels:
        torch.nn.init.zeros_(unet.class_embedding.weight)
    return unet


def copy_weights(unet: UNet2DModel, pipeline: Path) -> None:
    """Copy the weights of a pipeline's network; the embeddings of labels may be missing there."""
    trained = UNet2DModel.from_pretrained(pipeline, subfolder="unet").state_dict()
    missing, unexpected = unet.load_state_dict(trained, strict=False)
    if unexpected or set(missing) - {"class_embedding.weight"}:
        raise SystemExit(f"the network of {pipeline} is another one than that of this script")


def groups_of(unet: UNet2DModel) -> list[dict]:
    """The parameters for the optimiser; the embeddings of labels, which begin at 0, with ten times the rate."""
    own = [] if unet.class_embedding is None else list(unet.class_embedding.parameters())
    rest = [value for value in unet.parameters() if not any(value is each for each in own)]
    groups = [{"params": rest, "factor": 1.0}, {"params": own, "factor": 10.0, "weight_decay": 0.0}]
    return groups[: 1 + bool(own)]


class TimestepSampler:
    """Draws timesteps: half uniform, half normal in log(sigma/alpha) with mean `centre` and std 1.3."""

    def __init__(self, alphas_cumprod: torch.Tensor, centre: float = -0.5) -> None:
        log_noise = 0.5 * torch.log((1 - alphas_cumprod) / alphas_cumprod)
        width = torch.gradient(log_noise)[0]  # the width of each timestep on the log-noise axis
        density = torch.exp(-0.5 * ((log_noise - centre) / 1.3) ** 2) * width
        uniform = torch.full_like(density, 1 / len(density))
        self.probabilities = 0.5 * uniform + 0.5 * density / density.sum()

    def __call__(self, count: int) -> torch.Tensor:
        return torch.multinomial(self.probabilities, count, replacement=True)


class Progress:
    """Training progress that is saved with the weights and the optimiser: images seen, seconds spent, losses."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.losses: list[tuple[int, float]] = []

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def learning_rate(images: int, total: int, peak: float) -> float:
    """Warm-up over 10,000 images, constant, then linear decay to zero over the last quarter."""
    decay = max(0.0, min(1.0, (total - images) / (0.25 * total)))
    return peak * min(1.0, (images + 1) / 10_000) * decay


def save_pipeline(unet: UNet2DModel, ema: EMAModel, scheduler: DDPMScheduler, out: Path, facts: dict) -> None:
    """Write the averaged weights as a diffusers pipeline, then restore the current weights."""
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    DDPMPipeline(unet, scheduler).save_pretrained(out / "pipeline")
    ema.restore(unet.parameters())
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    """Train, or continue training, and write the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the IDX files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints and the pipeline")
    parser.add_argument("--images", type=int, default=1_500_000, help="total number of training images to see")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--mixed-precision", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--checkpoint-every", type=float, default=300.0, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", action="store_true", help="train a class-conditional network")
    parser.add_argument("--begin-from", type=Path, help="a pipeline whose weights are the first ones")
    args = parser.parse_args()

    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    images = load_images(args.data)
    labels = load_labels(args.data) if args.labels else None
    torch.manual_seed(args.seed + accelerator.process_index)
    unet = make_unet(args.labels)
    if args.begin_from is not None:
        copy_weights(unet, args.begin_from)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=True)
    # Which class an image belongs to is decided at higher noise levels than its details are.
    sample_timesteps = TimestepSampler(scheduler.alphas_cumprod, centre=0.5 if args.labels else -0.5)
    ema = EMAModel(unet.parameters(), decay=0.9997, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(groups_of(unet), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    model, optimizer = accelerator.prepare(unet, optimizer)
    ema.to(accelerator.device)
    progress = Progress()
    accelerator.register_for_checkpointing(ema, progress)
    checkpoint = args.out / "checkpoint"
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))
        torch.manual_seed(args.seed + progress.images + accelerator.process_index)
        accelerator.print(f"continuing at {progress.images:,} images")

    stop = False

    def request_stop(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)

    def save() -> None:
        accelerator.save_state(str(checkpoint))
        if accelerator.is_main_process:
            facts = {"images": progress.images, "hours": progress.seconds / 3600, "losses": progress.losses[-5:]}
            save_pipeline(accelerator.unwrap_model(model), ema, scheduler, args.out, facts)

    began = last_save = last_print = time.monotonic()
    spent_before = progress.seconds
    recent: list[torch.Tensor] = []
    step_images = args.batch_size * accelerator.num_processes
    # SDPA's flash kernel is slow for 49 tokens on a CPU; training is 1.5 times faster with plain matrix products.
    with sdpa_kernel(SDPBackend.MATH):
        while progress.images < args.images and not stop:
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * learning_rate(progress.images, args.images, args.learning_rate)
            chosen = torch.randint(len(images), (args.batch_size,))
            clean = images[chosen].to(accelerator.device)
            classes = None
            if labels is not None:
                dropped = torch.rand(args.batch_size) < DROPPED
                classes = labels[chosen].masked_fill(dropped, NO_LABEL).to(accelerator.device)
            noise = torch.randn_like(clean)
            timesteps = sample_timesteps(len(clean)).to(accelerator.device)
            predicted = model(scheduler.add_noise(clean, noise, timesteps), timesteps, classes).sample
            loss = (predicted.float() - noise).square().mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(unet.parameters())
            progress.images += step_images
            recent.append(loss.detach())
            now = time.monotonic()
            progress.seconds = spent_before + now - began
            if now - last_print > 30:
                mean_loss = float(torch.stack(recent).mean())
                if not math.isfinite(mean_loss):
                    raise SystemExit("the loss is no longer finite; start again with a lower --learning-rate")
                progress.losses.append((progress.images, mean_loss))
                rate = len(recent) * step_images / (now - last_print)
                seen = f"{progress.images:>9,} images"
                accelerator.print(f"{seen}  loss {mean_loss:.4f}  {rate:.0f} images/s", flush=True)
                recent, last_print = [], now
            if now - last_save > args.checkpoint_every:
                save()
                last_save = now
    save()
    accelerator.end_training()


if __name__ == "__main__":
    main()
