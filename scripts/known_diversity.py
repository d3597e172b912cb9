#!/usr/bin/env python
"""Whether metrics follow meaning or words: ``python scripts/known_diversity.py``.

Sets of replies from DailyDialog++ (five human replies to each context). The meaning of replies to many
contexts is more diverse than that of as many replies to few; the sets are paired so that the diversity of
words is equal, or opposed. Area under the ROC curve of each metric. Needs the data folder (environment
variable KIT_DATA) and the extras minilm, diversity and robust; writes ``known.json`` and embeddings.
"""

import argparse
from pathlib import Path

from diversity_study import known


def main() -> None:
    """Parses the arguments and runs the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--encoders",
        nargs="+",
        default=["minilm", "lm:embedded"],
        help="see dialogkit.diversity.load_encoder",
    )
    parser.add_argument("--k", type=int, default=20, help="clusters")
    parser.add_argument("--responses", type=int, default=10_000, help="training responses to cluster")
    parser.add_argument("--sets", type=int, default=800, help="sets of little diversity to pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/diversity_study"))
    known.run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
