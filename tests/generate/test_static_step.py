"""The decode step of a GPU, on a CPU: what a graph holds never changes, its replay gives the same tokens, it asks the host for nothing."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from generate import test_adapters_in_batch as adapters
from generate.prompts_and_engines import Letters, engine, greedy_by_transformers, ids_of, nested_prompts, prompts, rounding
from generate.recorded_graph import Recorded, Traced
from generate.test_session import SETTINGS
from sapwood.attention.interface import LayerCall
from sapwood.errors import ModelError
from sapwood.generate import Answer, Engine, Session, capture, drawing, sampling
from sapwood.generate import static as static_step
from sapwood.generate.arena import NOTHING, PADDING, Arena
from sapwood.generate.capture import Graphs, HostAskedError
from sapwood.generate.sampling import sample_from_few
from sapwood.generate.static import Bucket, StaticAttention, StaticMemory, StaticStep
from sapwood.generate.tree import Tree
from sapwood.model import LanguageModel, LoraConfig, add_lora
from sapwood.model.routes import BASE, Routes
from sapwood.records import Row, SamplingParams
from tiny.models import ARCHITECTURES, tiny_model

MEMORY = 2000 * 3 * 2 * 2 * 8 * 8
"""Bytes of a tiny model's cache of 2,000 tokens in fp64."""


def static(name: str, chat: Letters | None = None, graphs: Any = None, **schedule: Any) -> Engine:
    return with_graphs(engine(name, chat, step="static", memory=MEMORY, **schedule), graphs)


def with_graphs(made: Engine, graphs: Any) -> Engine:
    made.open().close()
    assert made._static is not None
    if graphs is not None:
        made._static.graphs = graphs
    return made


def fed_over_time(made: Engine, seed: int, adapter_names: tuple[str | None, ...] = (None,)) -> list[list[int]]:
    """Prompts with settings of their own that come between steps; each third one is cancelled on its way."""
    rng = np.random.default_rng(seed)
    with made.open() as session:
        answers = []
        for index, prompt in enumerate(prompts(nested_prompts(seed))):
            params = SamplingParams(max_new_tokens=int(rng.integers(3, 12)), temperature=float(index % 2), seed=seed, top_k=5 * (index % 3))
            answers.append(session.add(prompt, params, index=index, adapter=adapter_names[index % len(adapter_names)]))
            for _ in range(rng.integers(0, 3)):
                session.step()
            if index % 3 == 2:
                answers[rng.integers(len(answers))].cancel()
        finish(session)
    return [answer.ids for answer in answers]


def finish(session: Session) -> None:
    for _ in range(10_000):
        if session.idle:
            return
        session.step()
    raise AssertionError("it never ends")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_replay_without_python_gives_the_same_tokens(name: str) -> None:
    graphs, plain = Recorded(), engine(name, slots=5, min_saving=1)
    made = static(name, graphs=graphs, slots=5, min_saving=1)
    for seed in (1, 2):
        assert fed_over_time(made, seed) == fed_over_time(plain, seed)
    assert graphs.replays > 3 * len(graphs.notes), "nearly all steps were replays"
    assert {bucket.rows for bucket in graphs.notes if isinstance(bucket, Bucket)} >= {2, 4, 5}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_a_graph_would_hold_never_changes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_step, "NARROWEST", 16)
    traced = Traced()
    made = static(name, Letters([]), traced, slots=4, min_saving=1)
    for seed in (3, 4):
        fed_over_time(made, seed)
    assert traced.compared > 20
    assert len({bucket.width for bucket in traced.traces if isinstance(bucket, Bucket)}) > 1
    assert all(bucket.rows in (1, 2, 4) for bucket in traced.traces if isinstance(bucket, Bucket))


def test_training_keeps_graphs_and_other_weights_drop_them() -> None:
    tuned = LanguageModel(tiny_model("llama", torch.float32))
    graphs, ids, params = Recorded(), nested_prompts(2)[:5], SamplingParams(max_new_tokens=8)
    made = with_graphs(Engine(tuned, Letters(), step="static", memory=MEMORY), graphs)
    made.generate(prompts(ids), params)
    before = dict(graphs.notes)
    with torch.no_grad():
        for parameter in tuned.module.parameters():
            parameter.mul_(-1.1)
    assert ids_of(made.generate(prompts(ids), params)) == ids_of(Engine(tuned, Letters()).generate(prompts(ids), params))
    assert all(graphs.notes[key] is before[key] for key in before), "the weights lie where they lay"
    tuned.module.lm_head.weight = torch.nn.Parameter(tuned.module.lm_head.weight.detach().roll(3, 0))
    assert ids_of(made.generate(prompts(ids), params)) == ids_of(Engine(tuned, Letters()).generate(prompts(ids), params))
    assert graphs.notes
    assert all(graphs.notes.get(key) is not before[key] for key in before)


def test_a_replay_with_several_adapters(tmp_path: Path) -> None:
    tuned = LanguageModel(tiny_model("llama", torch.float64))
    for name in ("law", "some"):
        place = adapters.saved(tmp_path, name, adapters.CONFIGS[name], LanguageModel(tiny_model("llama", torch.float64)))
        tuned = adapters.add_adapter(tuned, place, name)
    names = (BASE, "law", "some", None)
    graphs = Recorded()
    made = with_graphs(Engine(tuned, Letters(), slots=4, step="static", memory=MEMORY), graphs)
    assert fed_over_time(made, 1, names) == fed_over_time(Engine(tuned, Letters(), slots=4), 1, names)
    assert max(len(bucket.adapters) for bucket in graphs.notes if isinstance(bucket, Bucket)) > 2


def test_two_sessions_take_turns() -> None:
    made, ids, params = static("llama", slots=3), nested_prompts(3)[:6], SamplingParams(max_new_tokens=9)
    expected = [greedy_by_transformers("llama", one, 9) for one in ids]
    with made.open() as one, made.open() as other:
        answers = [(one, other)[index % 2].add(prompt, params) for index, prompt in enumerate(prompts(ids))]
        while not (one.idle and other.idle):
            one.step()
            other.step()
    assert [answer.ids for answer in answers] == expected


def test_memory_that_another_session_holds_is_never_taken() -> None:
    made = engine("llama", step="static", memory=60 * 3 * 2 * 2 * 8 * 4)
    with made.open() as one, made.open() as other:
        first = one.add(prompts([[5, 6]])[0], SamplingParams(max_new_tokens=40))
        one.step()
        other.add(prompts([[7, 8]])[0], SamplingParams(max_new_tokens=40))
        with pytest.raises(ModelError, match="Another session"):
            other.step()
        finish(one)
        finish(other)
    assert first.ids == greedy_by_transformers("llama", [5, 6], 40)


def test_memory_is_given_back_and_taken_anew() -> None:
    made, params = static("llama", Letters([])), SamplingParams(max_new_tokens=4)
    memory = made._static
    assert memory is not None
    assert not memory.arena.keys, "none is taken before the first token"
    expected = ids_of(made.generate(prompts([[5, 6, 7]]), params))
    places = [side.data_ptr() for side in (*memory.arena.keys, *memory.arena.values, memory.table_BS, memory.numbers_5B)]
    made.generate(prompts(nested_prompts(1)), params)
    assert made._static is memory
    assert places == [side.data_ptr() for side in (*memory.arena.keys, *memory.arena.values, memory.table_BS, memory.numbers_5B)]
    made.release()
    assert not memory.arena.keys
    assert not len(memory.table_BS)
    assert ids_of(made.generate(prompts([[5, 6, 7]]), params)) == expected


def test_what_a_broken_row_left_behind_reaches_nobody() -> None:
    """Slots that held NaN are handed out again: what is masked out takes no part, though 0 · NaN is NaN."""
    made, params, asked = (
        static("llama", Letters([]), slots=4),
        SamplingParams(max_new_tokens=6),
        prompts([[5, 6, 7], [8, 9], [10]]),
    )  # one row fills up
    expected = ids_of(made.generate(asked, params))
    assert made._static is not None
    arena = made._static.arena
    made._tree.evict(0)
    for side in (*arena.keys, *arena.values):
        side[:, PADDING:] = float("nan")
    assert ids_of(made.generate(asked, params)) == expected
    assert all(not side[:, NOTHING].any() for side in (*arena.keys, *arena.values))


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_attention_is_that_of_its_definition(softcap: float | None, sinks: bool, window: int | None) -> None:
    """Rows of 5, 0 and 9 tokens before the new one, in slots without an order, and heads of another width for values."""
    torch.manual_seed(0)
    shape = {"dtype": torch.float64}
    arena = Arena([(torch.zeros(2, 1, 8, **shape), torch.zeros(2, 1, 6, **shape))], 40)
    lengths = [5, 0, 9]
    slots = [np.random.default_rng(length).permutation(arena.take(length + 1)) for length in lengths]
    arena.keys[0].normal_()
    arena.values[0].normal_()
    table = torch.full((3, 16), NOTHING, dtype=torch.int32)
    for row, taken in enumerate(slots):
        table[row, : len(taken)] = torch.from_numpy(taken)
    query, key, value = torch.randn(1, 6, 3, 8, **shape), torch.randn(1, 2, 3, 8, **shape), torch.randn(1, 2, 3, 6, **shape)
    call = LayerCall(0, 0.4, window, softcap, torch.randn(6, **shape) if sinks else None)
    attention = StaticAttention(arena, table, torch.tensor(lengths), torch.tensor([taken[-1] for taken in slots]))
    out = attention.attend(query, key, value, call)
    for row, taken in enumerate(slots):
        assert torch.equal(arena.keys[0][:, taken[-1]], key[0, :, row])
        seen = taken if window is None else taken[-window:]
        for head in range(6):
            scores = arena.keys[0][head // 3, seen] @ query[0, head, row] * 0.4
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            scores = scores if call.sinks_H is None else torch.cat([scores, call.sinks_H[head : head + 1]])
            weights = scores.softmax(-1)[: len(seen)]
            torch.testing.assert_close(out[0, row, head], weights @ arena.values[0][head // 3, seen], rtol=0, atol=1e-12)


class OffTheHost(TorchDispatchMode):
    """No tensor of the host takes part, nor is made.

    Tensors of the device `meta` have no data, so what looks at data raises. torch's FakeTensorMode would name the device "cuda", but in a
    build without CUDA it can neither index such a tensor nor attend with it: both ask for the device's guard.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            assert not isinstance(leaf, torch.Tensor) or leaf.device.type == "meta", f"{func} has a tensor of the host"
        self.calls += 1
        return out


@pytest.mark.parametrize("name", [*ARCHITECTURES, "adapters"])
def test_a_step_mixes_no_devices_and_reads_nothing_on_the_host(name: str) -> None:
    found = LanguageModel(tiny_model(name if name in ARCHITECTURES else "llama", torch.bfloat16), probe=False)
    if name == "adapters":
        found = add_lora(found, LoraConfig(r=2), 0)
    found.module.to("meta")
    config = found.base.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    one = torch.zeros(config.num_key_value_heads, 1, width, dtype=torch.bfloat16, device="meta")
    memory = StaticMemory([(one, one)] * config.num_hidden_layers, found.device, slots=4, tokens=300, longest=None)
    memory.arena.take(0)
    memory.ready()
    step = StaticStep(found, Tree(longest=9, min_saving=1), Routes(found), memory)
    with torch.inference_mode(), OffTheHost() as watch:
        logits = step._compute(Bucket(4, 256, (None, BASE, "default") if name == "adapters" else (None,)))
    assert (tuple(logits.shape), logits.device.type) == ((4, 97), "meta")
    assert watch.calls > 100
    with torch.inference_mode(), OffTheHost(), pytest.raises((AssertionError, RuntimeError), match=r"host|meta"):
        int(logits.argmax())


@pytest.mark.parametrize("params", [*SETTINGS, SamplingParams(temperature=1.0, top_k=300)])
def test_sampling_reads_nothing_on_the_host(params: SamplingParams) -> None:
    logits = torch.zeros(3, 500, dtype=torch.bfloat16, device="meta")
    answers = [Answer(prompts([[5, 6]])[0], params, Letters()) for _ in range(3)]
    edited = drawing._edited(logits, drawing._changed(logits, answers), np.zeros((3, 16), dtype=np.int32))
    found = sample_from_few(logits, params, np.zeros(3), edited)
    assert [part.device.type for part in found] == ["meta"] * 3


def test_a_step_of_mixed_settings_is_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = drawing._read
    monkeypatch.setattr(drawing, "_read", lambda tensors: reads.append(len(tensors)) or read(tensors))  # type: ignore[func-returns-value]
    made = static("llama", Letters([]))
    with made.open() as session:
        for index, params in enumerate(SETTINGS):
            session.add(prompts([[5 + index, 6]])[0], replace(params, top_logprobs=index % 3), index=index)
        for steps in range(1, 4):
            session.step()
            assert len(reads) == steps


def test_a_filter_that_keeps_more_than_was_looked_at_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts([[5, 6], [7], [8, 9]])
    params = SamplingParams(max_new_tokens=8, temperature=1.5, top_p=0.99, seed=3, top_logprobs=2)
    expected = static("llama", Letters([])).generate(asked, params)
    monkeypatch.setattr(sampling, "CANDIDATES", 3)
    assert [(one.ids, one.logprobs) for one in static("llama", Letters([])).generate(asked, params)] == [
        (one.ids, one.logprobs) for one in expected
    ]


class Graph:
    """What is replayed, without a GPU."""

    replays = 0

    def replay(self) -> None:
        self.replays += 1


def test_graphs_are_few_and_the_one_used_longest_ago_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Graph, torch.Tensor]] = []

    def captured(step: Any, pool: Any, device: torch.device) -> tuple[Graph, torch.Tensor]:
        made.append((Graph(), step()))
        return made[-1]

    monkeypatch.setattr(capture, "_capture", captured)
    monkeypatch.setattr(capture, "MOST", 2)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    graphs = Graphs(torch.device("cuda"))
    found = [float(graphs.run(key, lambda key=key: torch.tensor(float(key)))) for key in (1, 2, 1, 3, 1, 2)]  # type: ignore[misc]
    assert found == [1, 2, 1, 3, 1, 2]
    assert [float(logits) for _, logits in made] == [1, 2, 3, 2]
    assert [graph.replays for graph, _ in made] == [3, 1, 1, 1]
    graphs.drop()
    graphs.run(1, lambda: torch.tensor(1.0))
    assert len(made) == 5


def test_a_step_that_asks_the_host_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tried: list[Any] = []

    def refused(step: Any, pool: Any, device: torch.device) -> Any:
        tried.append(step)
        raise HostAskedError("called a synchronizing CUDA operation")

    monkeypatch.setattr(capture, "_capture", refused)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    graphs = Graphs(torch.device("cuda"))
    with caplog.at_level(logging.INFO, logger="sapwood"):
        assert [float(graphs.run(key, lambda: torch.tensor(7.0))) for key in (1, 1, 2)] == [7, 7, 7]
    assert len(tried) == 1
    assert caplog.text.count("cannot be captured") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are captured on a GPU alone")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captured_steps_give_the_tokens_of_uncaptured_ones(name: str, dtype: torch.dtype) -> None:
    found = LanguageModel(tiny_model(name, dtype).to("cuda"))
    made, plain = (Engine(found, Letters(), slots=5, min_saving=1, memory=MEMORY) for _ in range(2))
    assert made.kind == "static"
    for one in (made, plain):
        one.open().close()
    assert made._static is not None
    assert plain._static is not None
    plain._static.graphs.why_not = "to compare"
    for seed in (1, 2, 3):
        assert fed_over_time(made, seed) == fed_over_time(plain, seed)
    assert made._static.graphs.why_not == ""
    assert len(made._static.graphs._captured) >= 3
    if dtype == torch.float32:
        ids = nested_prompts(1)
        [*answers] = made.generate(prompts(ids), SamplingParams(max_new_tokens=9, temperature=1.0, seed=3))
        rows = [Row(np.array(one.prompt.ids), np.array(one.ids), np.ones(len(one.ids), np.float32)) for one in answers]
        for one, expected in zip(answers, found.logprobs(rows), strict=True):
            np.testing.assert_allclose(one.logprobs, expected, rtol=0, atol=10 * rounding(name))
