"""The picture of docs/tuning.md: the solver tables of the embedded model.

python studies/draw_tables.py
"""

from __future__ import annotations

from pathlib import Path

import sdesamplers as sds

FILE = Path(__file__).parents[1] / "docs/images/solver_tables.png"


def main() -> None:
    """Draw the tables for 5 and 8 evaluations."""
    folder = Path(sds.__file__).parent / "assets/fashion-mnist/sdesamplers"
    sds.plot_tables([sds.SolverTable.load(folder, nfe) for nfe in (5, 8)]).savefig(FILE)
    print(FILE)


if __name__ == "__main__":
    main()
