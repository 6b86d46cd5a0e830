"""The comparison itself: what it calls equal, what it does not, and that it says so in numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.chat import Chat
from sapwood.errors import ExportError
from sapwood.export.readers import check_prompts, logprobs_of_module
from sapwood.export.verify import Parity, Tolerance, Trace, compare, logprobs_of, require, trace
from sapwood.model import LoraConfig, add_lora, load_model, trainable_parameters
from sapwood.records import Message, Prompt
from tiny.folder import write_model

TIGHT = Tolerance(kl=1e-6, tie=1e-3)


def made_trace(rng: np.random.Generator, tokens: int = 4, width: int = 11, base_kl: float | None = 0.5) -> Trace:
    logits = rng.normal(size=(tokens, width))
    logprobs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    return Trace(Prompt((), (1, 2), ""), tuple(logprobs.argmax(-1).tolist()), logprobs, base_kl)


def shifted(one: Trace, by: np.ndarray) -> np.ndarray:
    moved = one.logprobs_NV.astype(np.float64) + by
    return (moved - np.log(np.exp(moved).sum(-1, keepdims=True))).astype(np.float32)


def test_the_same_numbers_hold_and_padding_of_the_vocabulary_does_not_count() -> None:
    one = made_trace(np.random.default_rng(0))
    padded = np.concatenate([one.logprobs_NV, np.full((4, 5), -40.0, np.float32)], axis=1)
    for found in (one.logprobs_NV, padded):
        parity = compare([one], lambda ids, count, found=found: found, TIGHT, "a reader")
        assert parity.holds
        assert (parity.mean_kl, parity.max_logprob, parity.same_greedy, parity.tokens) == (0, 0, 4, 4)
    assert parity.tuning_kl == 0.5


@given(st.integers(0, 1000), st.floats(0.05, 2))
def test_divergence_is_the_one_of_the_definition(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    one = made_trace(rng)
    other = shifted(one, size * rng.normal(size=one.logprobs_NV.shape))
    parity = compare([one], lambda ids, count: other, TIGHT, "a reader")
    p = np.exp(one.logprobs_NV.astype(np.float64))
    expected = (p * (one.logprobs_NV - other)).sum(-1)
    assert parity.mean_kl == pytest.approx(expected.mean(), abs=1e-6)
    assert parity.max_kl >= parity.mean_kl >= 0
    assert not parity.holds


def test_another_best_token_is_a_difference_unless_the_two_best_are_tied() -> None:
    rng = np.random.default_rng(1)
    one = made_trace(rng, tokens=1)
    first, second = np.argsort(-one.logprobs_NV[0])[:2]
    gap = float(one.logprobs_NV[0, first] - one.logprobs_NV[0, second])
    swap = np.zeros((1, 11))
    swap[0, second] = gap + 1e-4
    other = shifted(one, swap)
    for tie, beyond in ((gap / 2, 1), (2 * gap, 0)):
        parity = compare([one], lambda ids, count: other, Tolerance(kl=100, tie=tie), "a reader")
        assert (parity.same_greedy, parity.beyond_ties, parity.holds) == (0, beyond, not beyond)


def test_what_differs_is_refused_with_its_numbers() -> None:
    one = made_trace(np.random.default_rng(2))
    other = shifted(one, np.linspace(0, 3, 11))
    parity = compare([one], lambda ids, count: other, TIGHT, "a reader 1.0")
    with pytest.raises(ExportError, match=r"The thing does not compute what was trained.*a reader 1\.0.*greedy tokens differ.*Do this"):
        require(parity, "The thing", "Do this.")
    require(compare([one], lambda ids, count: one.logprobs_NV, TIGHT, "a reader"), "The thing", "Do this.")


@pytest.mark.parametrize("found", [np.zeros((3, 11), np.float32), np.zeros((4, 5), np.float32), np.full((4, 11), np.nan, np.float32)])
def test_numbers_that_are_none_are_refused(found: np.ndarray) -> None:
    one = Trace(Prompt((), (1, 2), ""), (9, 8, 7, 6), made_trace(np.random.default_rng(0)).logprobs_NV, None)
    with pytest.raises(ExportError, match="log-probabilities of the shape"):
        compare([one], lambda ids, count: found, TIGHT, "a reader")


def test_a_trace_is_what_transformers_computes_and_generates(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    chat = Chat.load(folder)
    model = add_lora(load_model(folder, "fp32"), LoraConfig(r=4), 0)
    for parameter in trainable_parameters(model).values():
        parameter.data.add_(0.1)
    prompts = [chat.prompt([Message("user", text)]) for text in ("the colour of the sky", "one two")]
    traces = trace(model, chat, prompts, max_new_tokens=5)
    for one in traces:
        assert tuple(one.logprobs_NV.argmax(-1)) == one.answer_N
        assert one.base_kl is not None
        assert one.base_kl > 1e-3
    model.module.set_attn_implementation("eager")
    parity = compare(traces, logprobs_of_module(model.module), TIGHT, "peft")
    assert parity.holds, parity.sentence
    with model.module.disable_adapter():
        untuned: Parity = compare(traces, logprobs_of_module(model.module), TIGHT, "the base")
    assert not untuned.holds
    assert untuned.mean_kl == pytest.approx(untuned.tuning_kl, rel=1e-3)
    assert logprobs_of(load_model(folder, "fp32"))(traces[0].ids, 2).shape[0] == 2


def test_prompt_ids_are_compared_but_for_those_that_differ_by_design(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    chat = Chat.load(folder)
    plain, control = (
        Trace(chat.prompt([Message("user", text)]), (), np.zeros((0, 3), np.float32), None) for text in ("one two", "say <|im_end|>")
    )
    assert check_prompts(folder, chat, [plain, control, plain]) == 2
    other = Prompt(plain.prompt.messages, (*plain.prompt.ids[:-1], 7), plain.prompt.text)
    with pytest.raises(ExportError, match=f"other prompt ids than training used: they differ from token {len(other.ids) - 1} on"):
        check_prompts(folder, chat, [Trace(other, (), plain.logprobs_NV, None)])


@pytest.mark.parametrize(
    ("divergence", "tuning", "doubted"), [(1e-6, 2.0, False), (1e-4, 2e-4, True), (1e-4, None, False), (1e-9, 0.0, False)]
)
def test_tuning_that_rounding_may_have_eaten_is_told(divergence: float, tuning: float | None, doubted: bool) -> None:
    parity = Parity("a reader", 8, 160, divergence, divergence, 0.01, 160, 0, tuning, Tolerance(kl=1e-3, tie=0.1))
    assert parity.holds
    assert bool(parity.doubts) == doubted
    assert all("Choose a type that rounds less" in doubt for doubt in parity.doubts)
