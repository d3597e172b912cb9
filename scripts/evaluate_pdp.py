#!/usr/bin/env python
"""Table 1 of the PDP paper at this project's scale: ``python scripts/evaluate_pdp.py STAGE``.

Ten speakers with eight utterances each answer turns of DailyDialog's test dialogues: zero-shot, with their
utterances listed, with pseudo-contexts by static, dynamic and random match, with the true contexts, and by
retrieving an utterance. Stages, in order: ``judge`` (trains the classifier behind StyleProb), ``replies``,
``latency``, ``measure``, ``report``, or ``all``. Each leaves its files under ``--runs`` and goes on where it
stopped. ``--page`` lets ``report`` fill ``docs/pdp_comparison.md``. Reads DailyDialog, Shakespeare and
PersonalityChat of the data folder (environment variable KIT_DATA) and the packaged MiniLM.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from pdp_study import pipeline

from trainkit.terminal import quiet


def main() -> None:
    """Parses the arguments and runs the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = pipeline.Plan()
    parser.add_argument("stage", choices=(*pipeline.STAGES, "all"))
    parser.add_argument("--model", default=usual.model, help="'embedded', a folder or Hub id")
    parser.add_argument("--dtype", default=usual.dtype, help="number type of the language model")
    parser.add_argument("--retriever", default=usual.retriever, help="matches and orders")
    parser.add_argument("--encoder", default=usual.encoder, help="of relevance, not the retriever")
    parser.add_argument("--judge", default=usual.judge, help="encoder to make the judge of; default: MiniLM")
    parser.add_argument("--speakers", type=int, default=usual.speakers, help="2 to 10")
    parser.add_argument("--inputs", type=int, default=usual.inputs)
    parser.add_argument("--seeds", type=int, default=usual.seeds, help="how many")
    parser.add_argument("--candidates", type=int, default=usual.candidates)
    parser.add_argument("--max-new-tokens", type=int, default=usual.max_new_tokens)
    parser.add_argument("--temperature", type=float, default=usual.temperature)
    parser.add_argument("--runs", type=Path, default=Path("runs/pdp"), help="folder of everything written")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--page", action="store_true", help="put the tables into the documentation")
    arguments = vars(parser.parse_args())
    quiet()
    plan = pipeline.Plan(**{field.name: arguments.pop(field.name) for field in fields(pipeline.Plan)})
    pipeline.run(arguments.pop("stage"), plan, **arguments)


if __name__ == "__main__":
    main()
