"""Any sampler inside an unmodified diffusers pipeline: the same pipeline, run by several of them.

python examples/in_a_pipeline.py                                                   # the embedded model, no download
python examples/in_a_pipeline.py stable-diffusion-v1-5/stable-diffusion-v1-5 --prompt "a lighthouse in a storm"
python examples/in_a_pipeline.py path/to/pipeline --samplers heun,unipc --spacing karras --steps 12
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

import sdesamplers as sds
from sdesamplers.io.images import grid

EMBEDDED = Path(sds.__file__).parent / "assets" / "fashion-mnist"


def main() -> None:
    """Load a pipeline, run it with each sampler, save one row of pictures for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=str(EMBEDDED), help="Hub id or folder of a pipeline")
    parser.add_argument("--prompt", help="for pipelines that take one")
    parser.add_argument("--samplers", default="quality,dpmpp-2m,heun,dpmpp-2m-sde", help="names of `sdesamplers list`")
    parser.add_argument("--spacing", help="time grid; each sampler's own choice by default")
    parser.add_argument("--steps", type=int, default=12, help="grid intervals, which pipelines call inference steps")
    parser.add_argument("--images", type=int, default=6, help="of each sampler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("pipeline.png"))
    args = parser.parse_args()

    pipe = DiffusionPipeline.from_pretrained(args.source, use_safetensors=True)
    if takes(pipe, "prompt") != (args.prompt is not None):
        wants = "needs a --prompt" if args.prompt is None else "takes no --prompt"
        raise SystemExit(f"{type(pipe).__name__} {wants}")
    trained = pipe.scheduler.config  # what the model was trained with; it stays the same for every sampler
    pictures: list[Image.Image] = []
    for name in args.samplers.split(","):
        try:
            pipe.scheduler = sds.Scheduler.from_config(trained, name, spacing=args.spacing)
            pictures += pipe(**words(pipe, args)).images
        except sds.UsageError as error:  # a mistyped name, or a sampler that a pipeline cannot run
            raise SystemExit(str(error)) from None
        print(f"{name}: {len(pipe.scheduler.timesteps)} evaluations of the network")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    grid(pictures, columns=args.images).save(args.out)
    print(f"{args.out}: a row for each sampler, a column for each seed")


def words(pipe: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The call's words: one generator an image, so that each image has its own noise whatever the batch."""
    generators = [torch.Generator().manual_seed(args.seed + k) for k in range(args.images)]
    found: dict[str, Any] = {"num_inference_steps": args.steps, "generator": generators}
    if args.prompt is None:
        return {**found, "batch_size": args.images} if takes(pipe, "batch_size") else found
    return {**found, "prompt": [args.prompt] * args.images}


def takes(pipe: Any, word: str) -> bool:
    """Whether a pipeline's call has a parameter of this name."""
    return word in inspect.signature(type(pipe).__call__).parameters


if __name__ == "__main__":
    main()
