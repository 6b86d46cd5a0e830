"""Run directories for the report's tests, written by the very functions that a run writes with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sapwood.run import open_run

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'><!-- & \"quoted\" {{ 7*7 }} " + "W" * 300
ARMS = {"tuned": 0.5, "plain prompt": 0.0, "few-shot 4": 0.25, "most common answer": 0.0}


def bare_run(folder: Path) -> Path:
    """The least that is a run: its config."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: smollm2-135m-instruct\nlora:\n  rank: 16\n")
    return folder


def verdict(**changes: Any) -> dict[str, Any]:
    """A verdict over 120 items that says better, as evaluate.verdict writes it."""
    difference = {"mean": 0.31, "low": 0.21, "high": 0.41, "level": 0.95, "n": 120, "clusters": 60, "wins": 40, "losses": 2, "ties": 78}
    return {
        "decision": "better",
        "line": "+31.0 points [21.0, 41.0] over the best other arm",
        "tuned": "tuned",
        "best_other": "few-shot 4",
        "difference": {**difference, "minimum_detectable": 0.09},
        "arms": {name: {"rate": rate, "low": rate / 2, "high": rate / 2 + 0.3, "n": 120} for name, rate in ARMS.items()},
        **changes,
    }


def value_of(arm: str, number: int) -> float:
    """Score of an arm on item `number`: of each four, tuned gets the first two and few-shot the second and third right."""
    return float({"tuned": number % 4 in (0, 1), "few-shot 4": number % 4 in (1, 2)}.get(arm, False))


def full_run(folder: Path, items: int = 12, arms: Iterable[str] = ARMS, text: str = HOSTILE, said: Mapping[str, Any] | None = None) -> Path:
    """Every file a report reads. `text` stands wherever a model, a data set or a user puts free text."""
    bare_run(folder)
    run = open_run(folder)
    asked = [{"role": "system", "content": f"policy {text}"}]
    run.append(
        "items",
        *(
            {
                "item": f"i{n}",
                "messages": [*asked, {"role": "user", "content": f"question {n} {text}"}],
                "reference": f"ref {n}",
                "tags": [text],
            }
            for n in range(items)
        ),
    )
    run.append(
        "scores",
        *(
            {"arm": arm, "item": f"i{n}", "value": value_of(arm, n), "text": f"{arm} says {n} {text}", "explanation": text, "ended": "stop"}
            for arm in arms
            for n in range(items)
        ),
    )
    run.append(
        "metrics",
        *({"step": n, "kind": "train", "loss": 2 / n, "lr": 1e-3, "row_tokens_per_second": 700, "saved": 0.5} for n in range(1, 60)),
    )
    run.append("metrics", *({"step": n, "kind": "eval", "loss": 2.5 / n} for n in (1, 30, 59)))
    run.append(
        "samples",
        *({"when": when, "question": text, "answer": text, "reference": text, "right": when == "after"} for when in ("before", "after")),
    )
    run.append("ledger", *({"status": "trained", "file": "train.jsonl", "line": n} for n in range(1, 9)))
    run.append("ledger", {"status": "refused", "file": "train.jsonl", "line": 9, "reason": f"no answer {text}", "fix": text})
    run.append("ledger", {"kind": "summary", "rows_in": 9, "trained": 8, "held_out": 0, "refused": 1})
    run.write_json("verdict", verdict(caveats=[text], scorer=text) if said is None else said)
    run.write_json("environment", {"python": "3.11", "note": text, "api_key": "sk-very-private"})
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    run.close()
    return folder
