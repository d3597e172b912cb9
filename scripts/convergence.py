#!/usr/bin/env python
"""Convergence of SI-HG and other minimax methods on small problems: ``python scripts/convergence.py``.

Writes the numbers, tables and a figure of residual against passes to ``--output`` (under two minutes on one
core, no data needed); ``--page`` also puts tables and figure into ``docs/si_hg.md``.
"""

import argparse
from pathlib import Path

from convergence_study import report


def main() -> None:
    """Parses the arguments and runs everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/convergence"), help="folder of the results")
    parser.add_argument("--page", action="store_true", help="update docs/si_hg.md as well")
    report.run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
