#!/usr/bin/env python
"""RectGrad against nine other maps on CIFAR ResNets: ``python scripts/rectgrad.py``.

Total variation, mass in the frame and deletion curves with each confound of the published comparison
switched on and off, sanity tests beside them, and two pictures for each network. Writes ``results.json``,
``tables.md`` and PNG files to ``--output``; a network that is there already is not measured again. Needs the
data folder (environment variable KIT_DATA) and matplotlib. The images are CIFAR-10 through JPEG: no figure is
one of CIFAR-10 itself.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.interpret_study import rectgrad


def main() -> None:
    """Parses the arguments and runs the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/rectgrad"), help="folder of the results")
    parser.add_argument("--networks", type=int, nargs="+", choices=(20, 56), default=[20, 56], help="depths")
    parser.add_argument("--images", type=int, default=64, help="test images")
    parser.add_argument("--sanity-images", type=int, default=8, help="of them in the sanity tests")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    rectgrad.run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
