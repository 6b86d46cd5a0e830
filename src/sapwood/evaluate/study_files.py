"""The files that a study leaves: its record and items in; a page, Markdown, CSV, JUnit, and lm-eval's sample files out.

    ship.json      the answer and every number behind it
    report.html    one page that loads nothing and stays fast with ten thousand items
    report.md      the same in short, for a pull request
    items.csv      one line an item, the worst first
    junit.xml      each condition as a test, for machines that build
    lm-eval/       samples_ITEMS_ARM.jsonl, one an arm, as lm-eval 0.4 writes them

With `texts=False` no question, reference or answer leaves the directory's own records. Left out on purpose: uploading anything.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import orjson

from sapwood.errors import storage
from sapwood.evaluate.declared import Declared
from sapwood.evaluate.experiment import ArmScore, over_samples
from sapwood.evaluate.faults import Labels, cost_of, faults_in
from sapwood.evaluate.items import asked_text, stands_for
from sapwood.evaluate.report_files import text_of
from sapwood.evaluate.report_items import shortened
from sapwood.evaluate.shipping import Shipping, Skills
from sapwood.evaluate.study_page import render_study
from sapwood.evaluate.study_text import markdown
from sapwood.evaluate.study_view import Record, study_record
from sapwood.records import Item
from sapwood.requirements import ErrorType
from sapwood.run import Run, read_json, write_atomic


def write_study(
    run: Run,
    declared: Declared,
    shipping: Shipping | None,
    scores: Sequence[ArmScore],
    items: Sequence[Item],
    *,
    skills: Sequence[Skills] = (),
    training_seconds: float = 0.0,
    notes: Sequence[str] = (),
    labels: Labels | None = None,
    texts: bool = True,
) -> Record:
    """Write all of them, each whole or not at all, and give the record. Raises `StorageError`."""
    counts = {item.id: number for item in items if (number := stands_for(item)) is not None}
    record = study_record(declared, shipping, scores, training_seconds, notes, counts) | {"people": read_json(run.path / "people.json")}
    rows = item_rows(record, declared.plan.requirements.errors, scores, items, labels or {}, texts=texts)
    run.write_json("ship", record)
    if shipping is not None and shipping.verdict is not None:
        run.write_json("verdict", shipping.verdict.to_dict())
    for name, text in (
        ("report.html", render_study(record, rows)),
        ("report.md", markdown(record)),
        ("items.csv", items_csv(record, rows)),
        ("junit.xml", junit(record)),
    ):
        write_atomic(run.path / name, text.encode("utf-8", "replace"))
    if texts:
        _write_samples(run, declared.plan.requirements.primary.name, scores, items)
    return record


def item_rows(
    record: Record, errors: Sequence[ErrorType], scores: Sequence[ArmScore], items: Sequence[Item], labels: Labels, *, texts: bool
) -> list[Record]:
    """One row an item, the worst regressions first: by what was lost times the severity of what went wrong."""
    by_item: dict[str, dict[str, ArmScore]] = {}
    for score in over_samples(scores):
        by_item.setdefault(score.item, {})[score.arm] = score
    by_name = {error.name: error for error in errors}
    rows = []
    for item in items:
        given = by_item.get(item.id, {})
        faults = {arm: [name for name, has in faults_in(score, errors, labels).items() if has] for arm, score in given.items()}
        before, after = given.get(record["best_other"] or ""), given.get(record["candidate"])
        lost = before.value - after.value if before and after and before.value is not None and after.value is not None else None
        said = labels.get((record["candidate"], item.id, 0), {})
        weight = max((cost_of(by_name[name], said) for name in faults.get(record["candidate"], ())), default=1.0)
        rows.append(
            {
                "id": item.id,
                "status": _status(before, after),
                "hurt": None if lost is None else lost * weight,
                "tags": list(item.tags),
                "cluster": item.cluster,
                "source": item.conversation.where if texts else "",
                "asked": shortened(asked_text(item), "items.jsonl") if texts else "",
                "reference": shortened(text_of(item.reference), "items.jsonl") if texts else "",
                "answers": {arm: _answer(score, faults[arm], texts) for arm, score in given.items()},
            }
        )
    return sorted(rows, key=lambda row: -(row["hurt"] or 0.0))


def _status(before: ArmScore | None, after: ArmScore | None) -> str:
    if before is None or after is None or before.value is None or after.value is None:
        return "unscored"
    if after.value != before.value:
        return "better" if after.value > before.value else "worse"
    return "right" if after.value >= 1 else "wrong"


def _answer(score: ArmScore, faults: Sequence[str], texts: bool) -> Record:
    found: Record = {"v": score.value, "n": score.tokens_out, "s": round(score.seconds, 3), "f": list(faults), "e": score.ended}
    if score.others:
        found["o"] = dict(score.others)
    if texts:
        found |= {"t": shortened(score.text, "scores.jsonl"), "a": score.answer, "x": score.explanation}
    return found


def items_csv(record: Record, rows: Sequence[Record]) -> str:
    """One line an item. Cells that a spreadsheet would take for a formula are put in quotes of their own."""
    arms = [arm["name"] for arm in record["arms"]]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    texts = any(row["asked"] for row in rows)
    heads = [
        "item",
        "status",
        "hurt",
        "tags",
        "cluster",
        *arms,
        *(["asked", "reference", *(f"{arm}: answer" for arm in arms)] if texts else []),
    ]
    writer.writerow(heads)
    for row in rows:
        values = [row["answers"].get(arm, {}).get("v") for arm in arms]
        cells = [row["id"], row["status"], row["hurt"], " ".join(row["tags"]), row["cluster"], *values]
        if texts:
            cells += [row["asked"], row["reference"], *(row["answers"].get(arm, {}).get("t") for arm in arms)]
        writer.writerow([_cell(cell) for cell in cells])
    return out.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def junit(record: Record) -> str:
    """Each condition as a test case: missed ones fail, open ones are skipped with their reason."""
    checks = record["checks"]
    count = {outcome: sum(check["outcome"] == outcome for check in checks) for outcome in ("missed", "open")}
    suite = ElementTree.Element(
        "testsuite",
        name=f"sapwood study: {record['name']}",
        tests=str(len(checks)),
        failures=str(count["missed"]),
        skipped=str(count["open"]),
    )
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname=record["candidate"], name=check["name"])
        if check["outcome"] == "missed":
            ElementTree.SubElement(case, "failure", message=check["text"])
        elif check["outcome"] == "open":
            ElementTree.SubElement(case, "skipped", message=check["text"])
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def samples_as_lm_eval(metric: str, scores: Sequence[ArmScore], items: Sequence[Item]) -> list[Record]:
    """One arm's answers as records of lm-eval's `samples_*.jsonl`: one a document, its samples as its responses.

    An answer without a score has a metric of None, where lm-eval knows no such thing: its readers then leave it out, or fail; none count
    it as 0.
    """
    answers: dict[str, list[ArmScore]] = {}
    for score in scores:
        answers.setdefault(score.item, []).append(score)
    means = {score.item: score.value for score in over_samples(scores)}
    records = []
    for place, item in enumerate(items):
        given = answers.get(item.id)
        if not given:
            continue
        asked = asked_text(item)
        target = text_of(item.reference)
        texts = [score.text for score in given]
        records.append(
            {
                "doc_id": place,
                "doc": {"id": item.id, "messages": [m.for_template() for m in item.conversation.messages], "reference": item.reference},
                "target": target,
                "arguments": {"gen_args_0": {"arg_0": asked, "arg_1": {}}},
                "resps": [texts],
                "filtered_resps": texts,
                "filter": "none",
                "metrics": [metric],
                "doc_hash": item.id,
                "prompt_hash": hashlib.sha256(asked.encode()).hexdigest(),
                "target_hash": hashlib.sha256(target.encode()).hexdigest(),
                metric: means[item.id],
            }
        )
    return records


def file_names(names: Sequence[str]) -> list[str]:
    """Each in letters, digits and hyphens, for files; all numbered by their place where two would be the same.

    Names that differ by their case alone count as the same: some disks do not tell such files apart.
    """
    plain = ["".join(letter if letter.isalnum() else "-" for letter in name) for name in names]
    apart = len({name.casefold() for name in plain}) == len(plain)
    return plain if apart else [f"{name}-{place}" for place, name in enumerate(plain, 1)]


def _write_samples(run: Run, metric: str, scores: Sequence[ArmScore], items: Sequence[Item]) -> None:
    folder = run.path / "lm-eval"
    with storage(folder, "create the folder"):
        folder.mkdir(exist_ok=True)
    arms = list(dict.fromkeys(score.arm for score in scores))
    for arm, name in zip(arms, file_names(arms), strict=True):
        records = samples_as_lm_eval(metric, [score for score in scores if score.arm == arm], items)
        write_atomic(folder / f"samples_items_{name}.jsonl", b"".join(orjson.dumps(record, default=str) + b"\n" for record in records))


def lines_of(record: Mapping[str, Any]) -> list[str]:
    """Each condition on a line, for a terminal."""
    signs = {"met": "✓", "missed": "✗", "open": "?"}
    return [f"{signs[check['outcome']]} {check['name']}: {check['text']}" for check in record["checks"]]
