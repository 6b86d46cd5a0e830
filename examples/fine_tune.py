"""Fine-tune on your own conversations from Python, and look at the proof.

    python examples/fine_tune.py my.jsonl
"""

from __future__ import annotations

import sys

import sapwood


def main(data: str) -> None:
    """Train with the defaults but for the rate, then ask the finished run again."""
    result = sapwood.sft(data, lr=5e-4, epochs=1)
    print(result.line)
    print("adapter:", result.adapter)
    print("report: ", result.report)

    again = sapwood.evaluate(result.path)
    print(again.line)


if __name__ == "__main__":
    main(sys.argv[1])
