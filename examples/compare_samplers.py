"""Compare samplers on one model at equal numbers of evaluations, from the same starting noise.

    python examples/compare_samplers.py
    python examples/compare_samplers.py --samplers ddim,heun,euler-maruyama --nfe 10,20,50 --num-samples 256

Writes compare.png (a row for each sampler, a column for each number of evaluations), compare.json and compare.csv.
Judge the Fréchet distance against that of the same number of real images, which is printed too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sdesamplers as sds


def main() -> None:
    """Run the comparison, print a line per cell, save the picture and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="fashion-mnist", help="registered name, folder or Hub id")
    parser.add_argument("--samplers", default="euler,ddim,heun,ddpm", help="comma-separated names")
    parser.add_argument("--nfe", default="5,10,20", help="numbers of evaluations per sample, comma-separated")
    parser.add_argument("--num-samples", type=int, default=16)
    parser.add_argument(
        "--reference-samples", type=int, default=2, help="samples for the error against the exact ODE; 0 for none"
    )
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
