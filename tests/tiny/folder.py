"""A model folder like those people have, but tiny: random Llama weights, a trained byte-level tokenizer, a ChatML-like template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = ["the colour of the sky is blue", "the colour of grass is green", "one two three four five", "system user assistant answer"]


def write_model(folder: Path, *, template: str | None = TEMPLATE, context: int = 512, seed: int = 0) -> Path:
    """Write a loadable model folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIALS, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    described: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=1,
    )
    torch.manual_seed(seed)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_rows(file: Path, count: int = 60) -> Path:
    """A JSONL file of short conversations with a rule that can be learned."""
    colours = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red"}
    things = list(colours)
    with file.open("w") as out:
        for number in range(count):
            thing = things[number % len(things)]
            turns = [
                {"role": "system", "content": "answer"},
                {"role": "user", "content": f"{number}: the colour of {thing}"},
                {"role": "assistant", "content": colours[thing]},
            ]
            out.write(json.dumps({"messages": turns, "thing": f"{thing}-{number % 12}"}) + "\n")
    return file
