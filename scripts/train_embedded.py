#!/usr/bin/env python
"""Trains the models that ship in dialogkit/embedded: ``python scripts/train_embedded.py STAGE``.

Stages, in order: ``lm``, ``copy``, ``voice``, ``retriever``, ``export``, ``measure``. Each resumes where it
stopped; intermediate files are under ``--runs``. Reads the data sets named in the
model cards (environment variable KIT_DATA).
"""

import argparse
from pathlib import Path

from embedded_models import pipeline


def main() -> None:
    """Parses the arguments and runs one stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=pipeline.STAGES)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/embedded"), help="folder of checkpoints and figures"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    pipeline.run(arguments.stage, arguments.runs, threads=arguments.threads)


if __name__ == "__main__":
    main()
