"""An arm that is killed: asked by `test_killed`, run as `python killed_arm.py FOLDER`."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sapwood.evaluate import exact, items_from, run_arm
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt, SamplingParams
from sapwood.run import open_run

ITEMS, SAMPLES, ARMS = 60, 3, ("plain", "tuned")


class Slow:
    """Answers after a while, by a draw from the seed of the batch."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, **more: object) -> list[Completion]:
        time.sleep(0.03)
        draw = random.Random(params.seed)
        return [Completion(prompt, (1,), str(draw.randrange(3)), Ended.STOP) for prompt in prompts]


def asked() -> list[Item]:
    """The items."""
    return items_from(Conversation((Message("user", f"What is {n}?"), Message("assistant", str(n % 3)))) for n in range(ITEMS))


def main(folder: Path) -> None:
    """Ask what is missing."""
    run = open_run(folder)
    for arm in ARMS:
        run_arm(
            arm,
            asked(),
            Slow(),
            lambda conversation: Prompt(conversation.messages, (1,), ""),
            exact(),
            SamplingParams(temperature=1.0, seed=7),
            done=run.read("scores"),
            save=lambda batch: run.append("scores", *(score.record() for score in batch)),
            at_once=7,
            samples=SAMPLES,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
