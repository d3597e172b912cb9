#!/usr/bin/env python
"""Adversarial training methods on small images at equal cost: ``python scripts/robust_digits.py``.

Every method may spend the same number of forward-backward passes of a minibatch. Writes results, tables and
a figure to ``--output``; ``--page`` also puts them into ``docs/si_hg.md``. The images are
scikit-learn's digits; ``--data mnist`` and ``--data cifar10`` (JPEG) read the data folder (environment
variable KIT_DATA). A run whose result is there
already is not repeated, so an interrupted comparison goes on. Three budgets with three seeds take about 40
minutes of one core; ``--passes 400 --attack-steps 20 --test 200 --seeds 0`` is a quick look. Needs
scikit-learn for the digits, and matplotlib.
"""

import argparse
from pathlib import Path

import torch
from robust_study import comparison
from robust_study.studies import STUDIES


def main() -> None:
    """Parses the arguments and runs the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/robust_digits"), help="folder of the results"
    )
    parser.add_argument("--data", choices=tuple(STUDIES), default="digits", help="image set")
    parser.add_argument("--methods", nargs="+", help="names of methods as in the tables; default: all")
    parser.add_argument(
        "--passes",
        type=int,
        nargs="+",
        default=[400, 1600, 6400],
        help="minibatch passes that a method may spend",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="shares of its learning rate that each method chooses from, on held-out training images",
    )
    parser.add_argument(
        "--grow",
        dest="growth",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="shares of the steps in which the ball grows to its size; each method chooses likewise",
    )
    parser.add_argument("--attack-steps", type=int, default=50, help="steps of the attacks that judge")
    parser.add_argument(
        "--test", type=int, default=500, help="test images, at most 500 of the digits, 1,000 otherwise"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--gpu", action="store_true", help="train and attack on the GPU")
    parser.add_argument("--page", action="store_true", help="update docs/si_hg.md as well")
    arguments = parser.parse_args()
    if any(not rate > 0 for rate in arguments.rates):
        parser.error("--rates: shares are above 0")
    if any(not 0 <= grow <= 1 for grow in arguments.growth):
        parser.error("--grow: shares are between 0 and 1")
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch finds no GPU here")
    comparison.run(**vars(arguments))


if __name__ == "__main__":
    main()
