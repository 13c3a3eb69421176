"""Run an unmodified diffusers pipeline with any sampler: the same pipeline with several samplers.

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
from sdesamplers.io.sheets import Sheet

EMBEDDED = Path(sds.__file__).parent / "assets" / "fashion-mnist"


def main() -> None:
    """Load a pipeline, run it with each sampler, save a row of images for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=str(EMBEDDED), help="Hub id or folder of a pipeline")
    parser.add_argument("--prompt", help="the prompt, for pipelines that take one")
    parser.add_argument(
        "--samplers", default="quality,dpmpp-2m,heun,dpmpp-2m-sde", help="names from `sdesamplers list`"
    )
    parser.add_argument("--spacing", help="spacing of the time grid; by default that of each sampler")
    parser.add_argument("--steps", type=int, default=12, help="steps of the grid (num_inference_steps)")
    parser.add_argument("--images", type=int, default=6, help="images per sampler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("pipeline.png"))
    args = parser.parse_args()

    pipe = DiffusionPipeline.from_pretrained(args.source, use_safetensors=True)
    if takes(pipe, "prompt") != (args.prompt is not None):
        wants = "needs a --prompt" if args.prompt is None else "takes no --prompt"
        raise SystemExit(f"{type(pipe).__name__} {wants}")
    trained = pipe.scheduler.config  # describes how the model was trained; the same for every sampler
    rows: list[tuple[str, list[Image.Image]]] = []
    for name in args.samplers.split(","):
        try:
            pipe.scheduler = sds.Scheduler.from_config(trained, name, spacing=args.spacing)
            rows.append((name, pipe(**call_arguments(pipe, args)).images))
        except sds.UsageError as error:  # a mistyped name, or a sampler that a pipeline cannot run
            raise SystemExit(str(error)) from None
        print(f"{name}: {len(pipe.scheduler.timesteps)} evaluations")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    spacing = f", {args.spacing}" if args.spacing else ""
    prompt = f"; {args.prompt}" if args.prompt else ""
    seeds = f"seeds {args.seed} to {args.seed + args.images - 1}"
    note = f"{type(pipe).__name__}, {args.steps} steps{spacing}, {seeds}{prompt}"
    Sheet.of_strips(rows, note=note).save(args.out)
    print(f"{args.out}: a row for each sampler, a column for each seed")


def call_arguments(pipe: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of the call, with one generator per image, so that its noise does not depend on the batch."""
    generators = [torch.Generator().manual_seed(args.seed + k) for k in range(args.images)]
    kwargs: dict[str, Any] = {"num_inference_steps": args.steps, "generator": generators}
    if args.prompt is None:
        return {**kwargs, "batch_size": args.images} if takes(pipe, "batch_size") else kwargs
    return {**kwargs, "prompt": [args.prompt] * args.images}


def takes(pipe: Any, name: str) -> bool:
    """True if the call of the pipeline has a parameter of this name."""
    return name in inspect.signature(type(pipe).__call__).parameters


if __name__ == "__main__":
    main()
