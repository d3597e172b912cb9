#!/usr/bin/env python
"""Which diversity metric ranks dialogues as people do: ``python scripts/diversity_judgement.py``.

FED: 125 dialogues whose system turns people rated for diversity. Rank correlation of each metric over the
system turns of a dialogue, with bootstrap intervals over dialogues, beside length, and with the number of
responses and words held fixed. Needs the data folder (environment variable KIT_DATA) and the extras minilm,
diversity and robust; writes ``judgement.json`` and embeddings.
"""

import argparse
from pathlib import Path

from diversity_study import judgement


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
    parser.add_argument("--output", type=Path, default=Path("runs/diversity_study"))
    judgement.run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
