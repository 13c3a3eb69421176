"""Compare samplers on one model at the same numbers of evaluations, from the same starting noise.

    python examples/compare_samplers.py
    python examples/compare_samplers.py --samplers ddim,heun,euler-maruyama --nfe 10,20,50 --num-samples 256

Writes compare.png (rows samplers, columns evaluations), compare.json and compare.csv. The Fréchet distance means
something only beside that of as many real images, which is printed too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sdesamplers as sds


def main() -> None:
    """Run the comparison, print a line a cell, save picture and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="fashion-mnist", help="registered name, folder or Hub id")
    parser.add_argument("--samplers", default="euler,ddim,heun,ddpm")
    parser.add_argument("--nfe", default="5,10,20", help="budgets of model evaluations a sample")
    parser.add_argument("--num-samples", type=int, default=16)
    parser.add_argument("--reference-samples", type=int, default=2, help="for the error against the ODE; 0 for none")
    parser.add_argument("--out", type=Path, default=Path("out/compare"))
    args = parser.parse_args()

    try:
        comparison = sds.compare(
            args.model,
            args.samplers.split(","),
            [int(budget) for budget in args.nfe.split(",")],
            num_samples=args.num_samples,
            reference_samples=args.reference_samples,
            progress=print,
        )
        files = comparison.save(args.out)
    except sds.SdesamplersError as error:
        raise SystemExit(str(error)) from None
    for cell in comparison.cells:
        error = "" if cell.error is None else f"  ODE error {cell.error:.4f}"
        score = "" if cell.frechet is None else f"  Fréchet {cell.frechet:.3f}"
        print(f"{cell.sampler:<16}{cell.problem or f'{cell.nfe:>4} NFE  {cell.seconds:6.1f} s{error}{score}'}")
    if comparison.floor is not None:
        print(f"{'real images':<16}{'':>20}Fréchet {comparison.floor.frechet:.3f}")
    print(*files.values(), sep="\n")


if __name__ == "__main__":
    main()
