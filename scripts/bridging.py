#!/usr/bin/env python
"""Do robust networks have better gradients? ``python scripts/bridging.py STAGE``.

Stages, in order: ``train`` (small networks on clean and on attacked images), ``gradients`` (pictures),
``manifold`` (how far from the data images go along each network's loss gradient), ``roar`` (ROAR and KAR,
the long one), ``shapes`` (what the holes of ROAR tell by themselves), ``tradeoff`` (accuracy against scores,
with map and norm of training as axes), ``report`` (tables and figures; ``--page`` puts them into
``docs/bridging.md``), or ``all``. Each stage leaves its files under ``--runs`` and goes on where it stopped.
Reads the MNIST and CIFAR-10 images and the MNIST networks of the data folder (environment variable
KIT_DATA); the CIFAR-10 images went through JPEG: no figure is one of CIFAR-10 itself. Needs matplotlib and
scipy.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.interpret_study import bridging
from scripts.interpret_study.networks import STUDIES


def main() -> None:
    """Parses the arguments and runs the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=(*bridging.STAGES, "all"))
    parser.add_argument("--data", nargs="+", choices=tuple(STUDIES), default=list(STUDIES), help="data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the networks")
    parser.add_argument("--repeats", type=int, default=1, help="retrainings of each kind for each seed")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/bridging"), help="folder of all that is written"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--page", action="store_true", help="update docs/bridging.md as well")
    given = vars(parser.parse_args())
    studies = [STUDIES[name] for name in given.pop("data")]
    bridging.run(given.pop("stage"), studies=studies, **given)


if __name__ == "__main__":
    main()
