"""The conversion of GGUF files: bits, the order of rows, names and settings, against references written out here."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tiny_assets as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from tokenizers import Tokenizer

from sapwood.assets.gguf_model import convert, hub_name, to_bf16, unpermute
from sapwood.errors import AssetError


def exact(bits: int) -> Fraction:
    return Fraction(float(np.array([bits], np.uint32).view(np.float32)[0]))


TIES = st.integers(0, 2**15 - 2**8).map(lambda high: exact((high << 16) + 0x8000)).map(float)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**127), max_value=2.0**127) | TIES)
def test_bf16_is_the_nearest_with_ties_to_even(value: float) -> None:
    number = np.array([value], np.float32)
    below = int(number.view(np.uint32)[0]) >> 16 << 16  # towards zero
    found = int(to_bf16(number)[0]) << 16
    near, far = (abs(exact(bits) - Fraction(value)) for bits in (below, below + 0x10000))
    even = below if (below >> 16) % 2 == 0 else below + 0x10000
    assert found == (below if near < far else below + 0x10000 if far < near else even)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weight_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(AssetError, match="not a finite number"):
        to_bf16(np.array([1.0, value], np.float32))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_scores_survive_the_change_of_rotary_convention(heads: int, half: int, seed: int) -> None:
    """llama.cpp turns neighbouring pairs, transformers the two halves: q·k must be the same at every distance."""
    random = np.random.default_rng(seed)
    pairs_q, pairs_k = random.standard_normal((2, heads * 2 * half, 5))
    x_D, y_D = random.standard_normal((2, 5))
    angles = random.uniform(0, 3, half)

    def turn(vector_HK: np.ndarray, position: int, neighbours: bool) -> np.ndarray:
        split = (vector_HK[:, 0::2], vector_HK[:, 1::2]) if neighbours else (vector_HK[:, :half], vector_HK[:, half:])
        z = (split[0] + 1j * split[1]) * np.exp(1j * position * angles)
        return np.stack([z.real, z.imag])

    def scores(w_q: np.ndarray, w_k: np.ndarray, neighbours: bool) -> np.ndarray:
        q, k = ((w @ v).reshape(heads, 2 * half) for w, v in ((w_q, x_D), (w_k, y_D)))
        return np.einsum("phk,phk->h", turn(q, 7, neighbours), turn(k, 3, neighbours))

    expected = scores(pairs_q, pairs_k, neighbours=True)
    assert np.allclose(scores(unpermute(pairs_q, heads), unpermute(pairs_k, heads), neighbours=False), expected)


@pytest.mark.parametrize(("architecture", "pre"), [("llama", "smollm"), ("qwen2", "qwen2")])
@pytest.mark.parametrize("tie", [False, True])
def test_every_tensor_arrives_under_its_name(
    architecture: str, pre: str, tie: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sapwood.assets.gguf_model._ROWS", 7)  # so that tensors come in several pieces
    meant = tiny.write_gguf(tmp_path / "tiny.gguf", architecture, pre)
    out = tmp_path / "out"
    out.mkdir()
    convert(tmp_path / "tiny.gguf", out, tie_to_output=tie and architecture == "qwen2", report=lambda *_: None)
    stored = dict(deserialize((out / "model.safetensors").read_bytes()))
    tied = tie or architecture == "llama"
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is tied

    expected = {hub_name(name): values for name, values in meant.items()}
    if architecture == "qwen2" and tie:
        expected["model.embed_tokens.weight"] = expected.pop("lm_head.weight")
    if architecture == "llama":
        for name, values in expected.items():
            if "q_proj" in name or "k_proj" in name:
                heads = tiny.HEADS if "q_proj" in name else tiny.KV_HEADS
                # interleave again, as llama.cpp's converter does: must give what the file holds
                expected[name] = values.reshape(heads, tiny.HEAD_WIDTH // 2, 2, -1).transpose(0, 2, 1, 3).reshape(values.shape)
    assert stored.keys() == expected.keys()
    assert ("lm_head.weight" in stored) is not tied
    for name, values in expected.items():
        assert stored[name]["dtype"] == "BF16"
        assert tuple(stored[name]["shape"]) == values.shape
        assert bytes(stored[name]["data"]) == to_bf16(values).tobytes(), name


def test_settings_of_the_folder(tmp_path: Path) -> None:
    tiny.write_gguf(tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path, tie_to_output=False, report=lambda *_: None)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architectures"], config["model_type"], config["dtype"]) == (["LlamaForCausalLM"], "llama", "bfloat16")
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 16)
    assert (config["rms_norm_eps"], config["rope_parameters"]["rope_theta"]) == (1e-5, 10000.0)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0], "a turn's end first, and <|endoftext|> stops as well"
    assert generation["pad_token_id"] == 0, "padding is never the end of a turn, whatever the file says"
    assert (tmp_path / "chat_template.jinja").read_text() == tiny.TEMPLATE


@pytest.fixture(scope="module", params=["smollm", "qwen2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tokenizer]:
    folder = tmp_path_factory.mktemp(request.param)
    tiny.write_gguf(folder / "tiny.gguf", "llama" if request.param == "smollm" else "qwen2", request.param)
    convert(folder / "tiny.gguf", folder, tie_to_output=False, report=lambda *_: None)
    return request.param, Tokenizer.from_file(str(folder / "tokenizer.json"))


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_text_survives_and_nothing_is_added(tokenizer: tuple[str, Tokenizer], text: str) -> None:
    import unicodedata

    kind, tok = tokenizer
    ids = tok.encode(text, add_special_tokens=True).ids
    assert ids == tok.encode(text, add_special_tokens=False).ids
    assert tok.decode(ids, skip_special_tokens=False) == (unicodedata.normalize("NFC", text) if kind == "qwen2" else text)


def test_splits_and_specials(tokenizer: tuple[str, Tokenizer]) -> None:
    _, tok = tokenizer
    assert tok.encode("12 the").tokens == ["1", "2", "Ġthe"], "digits stand alone even though the merge `1 2` exists"
    assert tok.encode("<|im_start|>a<tool><|im_end|>\n").tokens == ["<|im_start|>", "a", "<tool>", "<|im_end|>", "Ċ"]
    assert tok.decode(tok.encode("<|im_start|>a<tool>").ids) == "a<tool>", "control tokens are special, user-defined ones are text"
    assert tok.token_to_id("[PAD]") is None, "a filler is no token"
    assert [tok.token_to_id(token) for token in tiny.SPECIALS] == [0, 1, 2]


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ({"architecture": "gemma"}, "architecture 'gemma'"),
        ({"pre": "llama-bpe"}, "splitter 'llama-bpe'"),
        ({"extra_tensor": "rope_freqs.weight"}, "'rope_freqs.weight' that has no place"),
        ({"extra_tensor": "blk.0.attn_q_norm.weight"}, "'blk.0.attn_q_norm.weight' that has no place"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(variant: dict[str, str], said: str, tmp_path: Path) -> None:
    tiny.write_gguf(tmp_path / "tiny.gguf", **variant)
    with pytest.raises(AssetError, match=said):
        convert(tmp_path / "tiny.gguf", tmp_path, tie_to_output=False, report=lambda *_: None)


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"no model" * 100)
    with pytest.raises(AssetError, match="not a GGUF file"):
        convert(tmp_path / "tiny.gguf", tmp_path, tie_to_output=False, report=lambda *_: None)
