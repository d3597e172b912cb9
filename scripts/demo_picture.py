"""Draw docs/img/demo.svg, the picture of the README, from the real output of the demo.

    python scripts/demo_picture.py [--seed 0] [--output docs/img/demo.svg]

Needs the embedded models and nothing else.
"""

from __future__ import annotations

import argparse
import os
from io import StringIO
from pathlib import Path

from rich.console import Console

from dialogkit.demo import demo_bots, run_demo

WIDTH = 110


def main() -> None:
    """Runs the demo on a recording console and writes the picture, whole or not at all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/img/demo.svg"))
    arguments = parser.parse_args()

    console = Console(
        record=True,
        width=WIDTH,
        file=StringIO(),
        force_terminal=True,
        markup=False,
        emoji=False,
        highlight=False,
    )
    run_demo(console, demo_bots(), seed=arguments.seed)
    # A fixed id keeps pictures of equal output equal.
    picture = console.export_svg(title="dialogkit demo", unique_id="demo")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output.with_suffix(".part")
    temporary.write_text(picture, encoding="utf-8")
    os.replace(temporary, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
