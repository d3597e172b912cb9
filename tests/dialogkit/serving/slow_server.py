"""A server whose chatbot finishes a reply when a file appears: python slow_server.py FILE."""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dialogkit.chat import Reply
from dialogkit.dialogues import Turn
from dialogkit.serving import create_app, run_app


class Patient:
    """Begins at once, and ends when it may."""

    name = "Patient"

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def reply(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Reply:
        return self.reply_batch([history])[0]

    def reply_batch(
        self, histories: Sequence[Sequence[Turn] | str], *, seed: int | None = None
    ) -> list[Reply]:
        return [Reply("".join(self.stream(history))) for history in histories]

    def stream(self, history: Sequence[Turn] | str, *, seed: int | None = None) -> Iterator[str]:
        yield "Wait "
        while not self.sign.exists():
            time.sleep(0.01)
        yield "for me."


if __name__ == "__main__":
    run_app(create_app({"patient": Patient(Path(sys.argv[1]))}), port=0)
