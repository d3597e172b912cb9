#!/usr/bin/env python
"""Writes a robustness report: ``python scripts/evaluate_robustness.py --model … --data … --out …``.

The same as ``robustkit evaluate``; ``--help`` lists the options, ``docs/robustness_report.md`` explains them.
"""

import sys

from robustkit.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]], prog_name="robustkit")
