"""What people found in answers: a file in, labels by arm and item out. Read before anything is asked, so that a typo costs no answer.

Read are lines of `{"arm", "item", "errors": [names]}`, with `sample` where an item was answered several times (else the first is meant,
which is the one that reviewers are shown), and `{"type", "degree"}` or `{"type", "severity"}` for a name where one was weighed; and
`votes.jsonl` as `sapwood review export` writes it, where one vote has looked at every answer that it was shown. What several people found
of one answer is taken together. Votes on cases whose answer was known beforehand are passed over: they check the raters.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import orjson

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, DataError, storage
from sapwood.requirements import ErrorType, Requirements


def read_labels(
    file: Path | None, requirements: Requirements, arms: Collection[str], items: Collection[str]
) -> dict[tuple[str, str, int], dict[str, float | None]]:
    """(arm, item, sample) → the errors found there, empty where somebody looked and found none; see `faults.Labels`.

    `arms` may leave a number away that is chosen later (`few-shot`). Raises `DataError` with file:line for what is no label, or is one of
    an answer that this study does not have, `ConfigError` for no file and for an error that the taxonomy lacks.
    """
    if file is None:
        return {}
    if not file.is_file():
        raise ConfigError(f"labels: {file} is no file. Give votes.jsonl of `sapwood review export`, or lines of arm, item and errors.")
    with storage(file, "read"):
        lines = file.read_bytes().splitlines()
    found: dict[tuple[str, str, int], dict[str, float | None]] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = orjson.loads(line)
            item, said = str(record["item"]), [] if record.get("gold") else _said(record)
            sample = int(record.get("sample") or 0)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError):
            raise DataError(
                f'{file}:{number}: each line is one object with "arm", "item" and "errors", a list of names, or a vote of votes.jsonl.'
            ) from None
        for arm, errors in said:
            if arm not in arms and arm.rpartition(" ")[0] not in arms:
                raise DataError(
                    f"{file}:{number}: this study has no arm {arm!r}.{did_you_mean(arm, list(arms))} Arms: {', '.join(arms)}. While a "
                    "batch of reviews is open its arms have no names: close it, and export again."
                )
            if item not in items:
                raise DataError(f"{file}:{number}: this study asks no item {item!r}. Label the answers of its own items.jsonl.")
            here = found.setdefault((arm, item, sample), {})
            for error in errors:
                kind = requirements.error(str(error["type"]))
                known = here.get(kind.name)
                here[kind.name] = _worse(known, _severity(kind, error))
    return found


def _said(record: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(arm, errors) of each answer that was looked at."""
    if "left" not in record:
        return [(str(record["arm"]), [error if isinstance(error, dict) else {"type": error} for error in record["errors"]])]
    shown = [str(arm) for arm in (record["left"], record["right"]) if arm]
    return [(arm, [error for error in record["errors"] if error["arm"] == arm]) for arm in shown]


def _severity(kind: ErrorType, error: dict[str, Any]) -> float | None:
    """As this occurrence was weighed: by the degree that these requirements name, else by the number beside it; None where it was not."""
    if error.get("degree") is not None and any(degree.name == error["degree"] for degree in kind.degrees):
        return kind.severity_of(str(error["degree"]))
    given = error.get("severity") if error.get("degree") is not None or "arm" not in error else None
    return None if given is None else float(given)


def _worse(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else max(one, other)
