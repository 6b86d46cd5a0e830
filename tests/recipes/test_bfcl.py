"""The quick start's task: no held-out function was ever seen in training, and the references score as right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sapwood.data import split
from sapwood.errors import AssetError
from sapwood.evaluate import function_call, items_from
from sapwood.recipes.bfcl import SUBSETS, conversations_from
from sapwood.records import Completion, Ended, Prompt


def write_set(folder: Path, count: int = 24) -> Path:
    """A set of the same form: every third request offers a second function, which chains functions into families."""
    (folder / "possible_answer").mkdir(parents=True)
    for subset in SUBSETS:
        rows, answers = [], []
        for number in range(count):
            names = [f"{subset}_f{number // 2}", *([f"{subset}_f{number // 2 + 1}"] if number % 3 == 0 else [])]
            functions = [
                {
                    "name": name,
                    "description": "does it",
                    "parameters": {"type": "dict", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
                }
                for name in names
            ]
            rows.append(
                {"id": f"{subset}_{number}", "question": [[{"role": "user", "content": f"do it with {number}"}]], "function": functions}
            )
            allowed = {names[0]: {"x": [number], "unit": ["", "m"], "where": [{"lat": [1.5, 2], "note": [""]}]}}
            answers.append({"id": f"{subset}_{number}", "ground_truth": [allowed]})
        (folder / f"BFCL_v4_{subset}.json").write_text("\n".join(map(json.dumps, rows)))
        (folder / "possible_answer" / f"BFCL_v4_{subset}.json").write_text("\n".join(map(json.dumps, answers)))
    return folder


def offered(conversation: object) -> set[str]:
    lines = conversation.messages[1].content.splitlines()  # type: ignore[attr-defined]
    return {json.loads(line)["name"] for line in lines if line.startswith("{")}


def test_no_function_is_on_both_sides(tmp_path: Path) -> None:
    conversations = conversations_from(write_set(tmp_path / "bfcl"))
    train, held = split(conversations, held_out=20, seed=0, cluster="family")
    seen = set().union(*(offered(conversations[i]) for i in train))
    asked = set().union(*(offered(conversations[i]) for i in held))
    assert asked
    assert not seen & asked


def test_the_trained_answers_are_right_by_the_scorer(tmp_path: Path) -> None:
    items = items_from(conversations_from(write_set(tmp_path / "bfcl")), cluster="family", reference="allowed")
    scorer = function_call()
    for item in items:
        answer = item.meta["answer"].content
        score = scorer(item, Completion(Prompt((), (), ""), (), answer, Ended.STOP))
        assert score.value == 1.0, score.explanation
        wrong = answer.replace('"x":', '"y":')
        assert scorer(item, Completion(Prompt((), (), ""), (), wrong, Ended.STOP)).value == 0.0


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="not the set that was expected"):
        conversations_from(tmp_path)
