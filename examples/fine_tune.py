"""Fine-tune on your own conversations from Python, and look at the proof.

python examples/fine_tune.py my.jsonl
"""

from __future__ import annotations

import sys
from typing import Any

import sapwood


def main(data: str, **knobs: Any) -> sapwood.TuneResult:
    """Train with the defaults but for the knobs that are given, then measure the finished run again."""
    result = sapwood.sft(data, **knobs)
    print(result.line)
    print("adapter:", result.adapter)
    print("report: ", result.report)

    again = sapwood.evaluate(result.path)
    print(again.line)
    return result


if __name__ == "__main__":
    main(sys.argv[1], lr=5e-4, epochs=1)
