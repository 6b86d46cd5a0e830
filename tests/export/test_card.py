"""Model cards: what a run measured stands in them with its interval, and nothing that was not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sapwood.export.card import RunFacts, facts_of_run, licence_of, write_card
from sapwood.export.verify import Parity, Tolerance

PARITY = Parity("a reader 1.0", 8, 160, 1e-5, 1e-4, 0.01, 160, 0, 2.0, Tolerance(kl=1e-3, tie=0.1))
VERDICT = {
    "decision": "better",
    "line": "+12.0 points [+3.0, +21.0] against the best other arm",
    "arms": {"tuned": {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 96}, "plain | prompt": {"rate": None, "low": None, "high": None, "n": 0}},
    "bits_per_token": {
        "held-out answers": {"before": {"mean": 2.0}, "after": {"mean": 1.5}, "change": {"mean": -0.5, "low": -0.6, "high": -0.4}}
    },
    "caveats": ["One training run."],
    "scorer": "exact",
}
LEDGER = {"kind": "summary", "rows_in": 1200, "trained": 1000, "held_out": 150, "refused": 50, "trained_tokens": 9000}
FACTS = RunFacts("my-1", "owner/base", ("my.jsonl",), {"epochs": 2.0, "lora.r": 16, "full": False}, "bf16", VERDICT, LEDGER)


def card(facts: RunFacts = FACTS, form: str = "merged", licence: str | None = "Apache-2.0") -> str:
    return write_card(facts, form, licence, {"merged bf16": PARITY}, ["A note."], ["vllm serve ."])


def test_the_front_matter_is_what_hubs_read() -> None:
    front = yaml.safe_load(card().split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert (front["base_model"], front["base_model_relation"], front["library_name"]) == ("owner/base", "finetune", "transformers")
    assert yaml.safe_load(card(form="gguf").split("---\n")[1])["base_model_relation"] == "quantized"
    local = yaml.safe_load(card(replace(FACTS, base_model="/home/me/base"), licence=None).split("---\n")[1])
    assert "base_model" not in local
    assert "license" not in local


def test_numbers_come_with_their_intervals() -> None:
    text = card()
    assert "| tuned | 50.0% | 40.0% – 60.0% | 96 |" in text
    assert "| plain \\| prompt | – | – – – | 0 |" in text
    assert "2.000 → 1.500 bits a token (-0.500 [-0.600, -0.400])" in text
    assert "1,200 rows in: 1,000 trained (9,000 tokens), 150 held out for evaluation, 50 refused." in text
    assert PARITY.sentence in text
    assert "| lora.r | 16 |" in text


@pytest.mark.parametrize(
    ("facts", "licence", "said"),
    [
        (replace(FACTS, verdict={}), "mit", "Not measured."),
        (replace(FACTS, verdict={**VERDICT, "decision": "not shown"}), "mit", "was not shown to be better"),
        (FACTS, None, "licence of the base model is not recorded"),
    ],
)
def test_what_is_not_known_is_said(facts: RunFacts, licence: str | None, said: str) -> None:
    assert said in card(facts, licence=licence)
    assert said not in card()


def test_folders_stay_private() -> None:
    text = card(replace(FACTS, base_model="/home/me/base"))
    assert "/home/me" not in text
    assert "`base`" in text


def test_facts_are_read_from_the_run(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text(json.dumps(VERDICT))
    rows = [{"status": "refused", "reason": "broken JSON: at 3"}, {"status": "refused", "reason": "broken JSON: at 9"}, LEDGER]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "environment.json").write_text(json.dumps({"versions": {"torch": "2"}, "template_arguments": {"enable_thinking": False}}))
    facts = facts_of_run(tmp_path, "b", ["/secret/place/my.jsonl"], {}, "fp32")
    assert (facts.data, facts.refusals, facts.ledger["trained"]) == (("my.jsonl",), {"broken JSON": 2}, 1000)
    text = card(facts)
    assert "enable_thinking" in text
    assert "secret" not in text
    assert facts_of_run(tmp_path / "none", "b", [], {}, "fp32").verdict == {}


def test_the_licence_is_found_or_not(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text("# no front matter\n")
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert licence_of(tmp_path) == "mit"
    (tmp_path / "sapwood.json").write_text('{"licence": "Apache-2.0"}')
    assert licence_of(tmp_path) == "Apache-2.0"
