"""The calls of the course's chapter 11, sections 3 and 4, with one import changed: those of today and those that TRL has dropped."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from sapwood.trl import LoRAConfig, LoraConfig, SFTConfig, SFTTrainer, clone_chat_template
from tiny.folder import TEMPLATE, write_model
from tiny.trainers import Rows, losses_of, model_of, notes_of, tokenizer_of

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*:"),
]
QUIET: dict[str, Any] = {"disable_tqdm": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "SmolLM2-135M", template=None)


@pytest.fixture
def dataset(rows: Rows) -> dict[str, Rows]:
    return {"train": rows[:24], "test": rows[24:]}


def test_section_3_as_the_page_has_it(base: Path, folder: Path, dataset: dict[str, Rows], tmp_path: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path=base).to(device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained_model_name_or_path=base)
    model, tokenizer, _ = clone_chat_template(model=model, tokenizer=tokenizer, source_tokenizer_path=str(folder))
    training_args = SFTConfig(
        output_dir=str(tmp_path / "sft_output"),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=5e-4,
        logging_steps=2,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        **QUIET,
    )
    trainer = SFTTrainer(
        model=model, args=training_args, train_dataset=dataset["train"], eval_dataset=dataset["test"], processing_class=tokenizer
    )
    trainer.train()
    evals = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert len(losses_of(trainer)) == 3
    assert len(evals) == 3
    assert evals[-1] < evals[0]


def test_section_3_as_the_notebook_has_it(base: Path, dataset: dict[str, Rows], tmp_path: Path) -> None:
    tokenizer = tokenizer_of(base)
    tokenizer.chat_template = TEMPLATE
    sft_config = SFTConfig(
        output_dir=str(tmp_path / "sft_output"),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=5e-5,
        logging_steps=10,
        save_steps=100,
        evaluation_strategy="steps",
        eval_steps=2,
        use_mps_device=False,
        hub_model_id="SmolLM2-FT-MyDataset",
        **QUIET,
    )
    trainer = SFTTrainer(
        model=model_of(base), args=sft_config, train_dataset=dataset["train"], tokenizer=tokenizer, eval_dataset=dataset["test"]
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "SmolLM2-FT-MyDataset"))
    reloaded = model_of(tmp_path / "SmolLM2-FT-MyDataset")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "the colour"}], tokenize=False)
    assert reloaded.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=3).shape[0] == 1
    said = notes_of(trainer)
    assert "evaluation_strategy is called eval_strategy" in said
    assert "tokenizer is called processing_class" in said


def test_section_3_on_packing(folder: Path, dataset: dict[str, Rows], tmp_path: Path) -> None:
    """The page hands over the whole dictionary of splits, and a function for a data set with several fields."""
    training_args = SFTConfig(str(tmp_path / "a"), packing=True, eval_packing=False, max_steps=2, **QUIET)
    trainer = SFTTrainer(model=model_of(folder), train_dataset=dataset, args=training_args)
    trainer.train()
    assert "'train' is taken" in notes_of(trainer)

    def formatting_func(example: dict[str, str]) -> str:
        return f"### Question: {example['question']}\n ### Answer: {example['answer']}"

    qa = [{"question": "the sky?", "answer": "blue"}, {"question": "the grass?", "answer": "green"}]
    training_args = SFTConfig(str(tmp_path / "b"), packing=True, **QUIET)
    trainer = SFTTrainer(str(folder), train_dataset=qa, args=training_args, formatting_func=formatting_func)
    assert trainer.train().global_step == 3


def test_section_4_as_the_notebook_has_it(folder: Path, dataset: dict[str, Rows], tmp_path: Path) -> None:
    name = str(tmp_path / "SmolLM2-FT-MyDataset")
    tokenizer = tokenizer_of(folder)
    peft_config = LoraConfig(r=6, lora_alpha=8, lora_dropout=0.05, bias="none", target_modules="all-linear", task_type="CAUSAL_LM")
    args = SFTConfig(
        output_dir=name,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        optim="adamw_torch_fused",
        learning_rate=2e-4,
        max_grad_norm=0.3,
        warmup_ratio=0.03,
        lr_scheduler_type="constant",
        logging_steps=10,
        save_strategy="epoch",
        bf16=True,
        push_to_hub=False,
        report_to="none",
        **QUIET,
    )
    trainer = SFTTrainer(
        model=model_of(folder),
        args=args,
        train_dataset=dataset["train"],
        peft_config=peft_config,
        max_seq_length=512,
        tokenizer=tokenizer,
        packing=True,
        dataset_kwargs={"add_special_tokens": False, "append_concat_token": False},
    )
    output = trainer.train()
    assert output.global_step == 6
    assert trainer.state.epoch == 1
    trainer.save_model()
    model = peft.AutoPeftModelForCausalLM.from_pretrained(
        pretrained_model_name_or_path=args.output_dir, torch_dtype=torch.float16, low_cpu_mem_usage=True
    )
    merged_model = model.merge_and_unload()
    merged_model.save_pretrained(args.output_dir, max_shard_size="2GB")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(name, device_map="cpu", torch_dtype=torch.float16)
    pipe = transformers.pipeline("text-generation", model=merged_model.float(), tokenizer=transformers.AutoTokenizer.from_pretrained(name))
    assert pipe("the colour", max_new_tokens=3)[0]["generated_text"].startswith("the colour")
    said = notes_of(trainer)
    for words in (
        "leaves the warm-up out in transformers",
        "warmup_ratio is called warmup_steps",
        "packing=True",
        "dataset_kwargs: add_special_tokens=False",
        "bf16=True: the model's weights go from float32 to bfloat16",
    ):
        assert words in said


def test_section_4_on_loading_adapters_and_merging(folder: Path, dataset: dict[str, Rows], tmp_path: Path) -> None:
    trainer = SFTTrainer(
        str(folder),
        SFTConfig(str(tmp_path / "adapter"), max_steps=2, bf16=False, **QUIET),
        None,
        dataset["train"],
        peft_config=LoRAConfig(r=4),
    )
    trainer.train()
    trainer.save_model()
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    base_model = transformers.AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, dtype=torch.float32)
    lora_model = peft.PeftModel.from_pretrained(base_model, str(tmp_path / "adapter"))
    merged_model = lora_model.merge_and_unload()
    merged_model.save_pretrained(tmp_path / "merged")
    tokenizer_of(folder).save_pretrained(tmp_path / "merged")
    ids = tokenizer_of(tmp_path / "merged")("the colour", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.allclose(model_of(tmp_path / "merged")(ids).logits, trainer.model(ids).logits, atol=1e-4)


def test_the_examples_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    sft, lora = (runpy.run_path(str(EXAMPLES / name)) for name in ("course_sft.py", "course_sft_lora.py"))
    rows = sft["written_here"]()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows["train"]))
    assert len(sft["read"](tmp_path / "rows.jsonl")["test"]) == 1
    trainer = sft["main"](rows, str(folder), str(tmp_path / "sft"), max_steps=4)
    assert trainer.state.global_step == 4
    assert "eval_loss" in capsys.readouterr().out
    lora["main"](rows, str(folder), str(tmp_path / "lora"), epochs=0.5)
    assert "What does the oak bear? →" in capsys.readouterr().out
    assert (tmp_path / "lora" / "merged" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_the_examples_on_the_default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sapwood.assets import DEFAULT_MODEL, resolve_model

    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    rows = runpy.run_path(str(EXAMPLES / "course_sft.py"))["written_here"]()
    said = runpy.run_path(str(EXAMPLES / "course_sft_lora.py"))["main"](
        rows, str(resolve_model(DEFAULT_MODEL)), str(tmp_path / "lora"), epochs=2
    )
    assert said == "The oak bears acorns."
