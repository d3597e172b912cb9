#!/usr/bin/env python
"""StyleProb of the embedded language model under each PDP prompt: ``python scripts/style_study.py``.

Sixteen speakers (the shipped characters, two of Shakespeare's, two of PersonalityChat's) answer the same
questions under each prompt with the same model, pool and seeds; a classifier that never saw the prompts'
lines judges the replies. Needs the data folder (environment variable KIT_DATA).
"""

import argparse
from pathlib import Path

from embedded_models import style_report


def main() -> None:
    """Parses the arguments and runs the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("questions", "dev_questions"), default="questions")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--candidates", type=int, default=4, help="replies drawn of which one is chosen")
    parser.add_argument("--selection", choices=("logprob", "ranker", "first"), default="logprob")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-dialogs", type=int, default=8, help="utterances shown in a prompt")
    parser.add_argument("--model", default="embedded", help="folder or Hub id of a language model")
    parser.add_argument("--retriever", default=None, help="encoder for matching; default: the embedded one")
    parser.add_argument("--output", type=Path, default=Path("runs/style_study"))
    arguments = parser.parse_args()
    style_report.run(**vars(arguments))


if __name__ == "__main__":
    main()
