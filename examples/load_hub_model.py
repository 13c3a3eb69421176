"""Sample any pretrained unconditional diffusers model: from the Hub, a local folder or the embedded one.

python examples/load_hub_model.py                               # google/ddpm-cat-256, downloaded once
python examples/load_hub_model.py fashion-mnist --steps 20      # embedded, no download
python examples/load_hub_model.py path/to/pipeline --sampler ddim --steps 50 --out samples.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sdesamplers as sds
from sdesamplers.io.images import grid
from sdesamplers.io.sheets import Sheet, Tile


def main() -> None:
    """Load, sample, save one PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="google/ddpm-cat-256", help="Hub id, folder or registered name")
    parser.add_argument("--sampler", default="heun", help="a name from `sdesamplers list`")
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--num-samples", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples.png"))
    args = parser.parse_args()

    try:
        model = sds.load(args.source)
        result = sds.sample(
            model, args.sampler, steps=args.steps, num_samples=args.num_samples, seed=args.seed, progress=True
        )
    except sds.ModelError as error:  # no network, no such repository, a broken or unsupported folder
        raise SystemExit(f"{error}\nWithout a network, try: python examples/load_hub_model.py fashion-mnist") from None
    except sds.UsageError as error:  # a mistyped sampler, steps of 0, ...
        raise SystemExit(str(error)) from None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    run = f"{model.name}: {result.recipe.sampler}, {args.steps} steps, {result.nfe} NFE, seed {args.seed}"
    Sheet([("", [Tile(grid(result.images))])], note=run).save(args.out)
    print(f"{args.num_samples} samples of {model.name} by {result.recipe.sampler}, {result.nfe} NFE each: {args.out}")


if __name__ == "__main__":
    main()
