#!/usr/bin/env python
"""Trains a robust classifier: ``python scripts/train_robust.py --model … --data … --threat … --out …``.

The same as ``robustkit train``, as a file that ``torchrun`` and ``accelerate launch`` can start in several
processes; ``--help`` lists the options, ``docs/adversarial_training.md`` explains them.
"""

import sys

from robustkit.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]], prog_name="robustkit")
