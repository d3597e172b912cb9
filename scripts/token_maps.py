#!/usr/bin/env python
"""Token attributions of a sentiment classifier, measured: ``python scripts/token_maps.py``.

MiniLM fine-tuned on SST-2 explains test texts by eight of our maps, by captum's layer integrated gradients
and at random. Measured are deletion curves, agreement with the opinion lexicon of Hu and Liu, and time.
Classifiers are those of ``scripts/rde_benchmark.py``; one that is missing is trained in the same way, some
eight minutes on one core. Writes ``results.json``, ``tables.md`` and a page of some texts for each classifier
to ``--output``; a classifier that was measured with the same settings is not measured again. Needs the data
folder (environment variable KIT_DATA) and the extra ``experiments``; no setting was chosen on the test texts.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.interpret_study import token_maps


def main() -> None:
    """Parses the arguments and runs the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/token_maps"), help="folder of the results")
    parser.add_argument(
        "--victims", type=Path, default=Path("runs/rde/victims"), help="folder of the classifiers"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the classifiers' training")
    parser.add_argument("--texts", type=int, default=150, help="test texts, drawn by a seed")
    parser.add_argument("--steps", type=int, default=16, help="steps of integrals, and noisy copies")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    token_maps.run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
