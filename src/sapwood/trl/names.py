"""What TRL and transformers call their options, now and in former versions, and what each of them means here.

In: nothing. Out: tables. `RENAMED` are former names of options that are honoured; `MET` are options that change speed, memory or
records alone, and that Sapwood answers in a way of its own, with the sentence that says so; `REFUSED` are options that would
change what is learned and that it does not have. Left out on purpose: the options that are honoured; they are the fields of
`config.SFTConfig`. An option of transformers that stands in none of these passes at its default, where it asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, tuple[str, str]] = {
    "evaluation_strategy": ("eval_strategy", "transformers 4.46"),
    "max_seq_length": ("max_length", "TRL 0.20"),
    "per_gpu_train_batch_size": ("per_device_train_batch_size", "transformers 3.0"),
    "no_cuda": ("use_cpu", "transformers 4.34"),
    "warmup_ratio": ("warmup_steps", "transformers 5.0, where a number below 1 is a share of all steps"),
    "max_sequence_length": ("max_length", "no version of TRL"),
    "tokenizer": ("processing_class", "TRL 0.16"),
}
"""Former name → the name now, and since when (or that it never was one)."""

_NO_PADDING = "rows are never padded here, and those of a step share passes without seeing each other"
_BUDGET = "how many rows share a pass is measured before the first step, and changes no result"
_PREPARED = "files are read by as many processes as pay"

MET: Mapping[str, str] = {
    "packing": _NO_PADDING,
    "packing_strategy": _NO_PADDING,
    "eval_packing": _NO_PADDING,
    "padding_free": _NO_PADDING,
    "pad_to_multiple_of": _NO_PADDING,
    "pad_token": _NO_PADDING,
    "group_by_length": f"{_NO_PADDING}, so batches of equal lengths have nothing to save",
    "length_column_name": _NO_PADDING,
    "num_of_sequences": _NO_PADDING,
    "chars_per_token": _NO_PADDING,
    "truncation_mode": "nothing is ever cut: a row that is longer than max_length is refused by name",
    "per_device_eval_batch_size": _BUDGET,
    "per_gpu_eval_batch_size": _BUDGET,
    "auto_find_batch_size": _BUDGET,
    "eval_accumulation_steps": "evaluation keeps sums, never logits",
    "prediction_loss_only": "evaluation keeps sums, never logits",
    "eval_do_concat_batches": "evaluation keeps sums, never logits",
    "dataset_num_proc": _PREPARED,
    "dataset_batch_size": _PREPARED,
    "dataloader_num_workers": _PREPARED,
    "dataloader_pin_memory": _PREPARED,
    "dataloader_persistent_workers": _PREPARED,
    "dataloader_prefetch_factor": _PREPARED,
    "dataloader_in_order": _PREPARED,
    "remove_unused_columns": "columns that the model does not read never reach it",
    "shuffle_dataset": "each epoch is shuffled anyway, by the seed",
    "use_mps_device": "the model computes where it is loaded",
    "use_liger_kernel": "the fused layers here are Sapwood's own",
    "liger_kernel_config": "the fused layers here are Sapwood's own",
    "torch_empty_cache_steps": "memory is tried out by a worst-case step before the first",
    "logging_nan_inf_filter": "a loss that is not finite stops the run before it can do harm",
    "include_num_input_tokens_seen": "metrics.jsonl of the run counts the tokens of every step",
    "include_tokens_per_second": "metrics.jsonl of the run has the tokens per second of every step",
    "skip_memory_metrics": "metrics.jsonl of the run holds what is measured",
    "overwrite_output_dir": "each training begins a folder of its own below output_dir, and none is written over",
    "save_safetensors": "everything is saved as safetensors",
    "save_only_model": "a checkpoint holds what an exact continuation needs",
    "logging_dir": "metrics.jsonl lies in the run's folder",
    "log_on_each_node": "one process trains",
    "log_level_replica": "one process trains",
    "average_tokens_across_devices": "a step's loss is divided once, by all its tokens",
    "ddp_find_unused_parameters": "one process trains",
    "ddp_bucket_cap_mb": "one process trains",
    "ddp_broadcast_buffers": "one process trains",
    "ddp_timeout": "one process trains",
    "local_rank": "one process trains",
    "full_determinism": "order and adapter are functions of the seed alone, always",
    "do_train": "train() trains",
    "do_eval": "eval_strategy says when to evaluate",
    "gradient_checkpointing_kwargs": "there is one way of recomputing activations here",
    "bf16_full_eval": "evaluation computes in the type of the model's weights",
    "include_inputs_for_metrics": "evaluation keeps sums, never logits",
    "use_cache": "training keeps no cache of keys",
    "run_name": "no service is told of a run, and its folder has the name of output_dir",
    "project": "no service is told of a run unless report_to names one",
}
"""Options that change speed, memory or records alone → how Sapwood meets them."""

REFUSED: Mapping[str, str] = {
    "fp16": "fp16 loses small gradients. Use bf16=True, or neither for the type in which the model was loaded",
    "fp16_full_eval": "evaluation computes in the type of the model's weights. Load the model in that type",
    "tf32": "set torch.backends.cuda.matmul.allow_tf32 in your own code, where everybody sees it",
    "label_smoothing_factor": "the loss is the plain log-likelihood. Leave it at 0",
    "neftune_noise_alpha": "noise on embeddings is not built. Leave it out",
    "deepspeed": "one process trains. Leave it out",
    "fsdp": "one process trains. Leave it out",
    "fsdp_config": "one process trains. Leave it out",
    "data_seed": "one seed gives the order and the adapter's start. Use `seed`",
    "dataloader_drop_last": "no row is dropped; the last step of a run may be smaller. Leave it out",
    "train_sampling_strategy": "rows are drawn at random by the seed. Leave it at 'random'",
    "eval_delay": "evaluations begin with the run. Leave it out",
    "loss_type": "the loss is the plain log-likelihood ('nll', or 'chunked_nll', which is the same). Choose one of these",
    "activation_offloading": "activations stay where the model is. Use gradient_checkpointing=True to need less memory",
    "torch_compile": "the model is run as it is. Leave it out",
    "optim_args": "the optimizer's own options are adam_beta1, adam_beta2, adam_epsilon and weight_decay",
    "label_names": "labels are made from the rows. Give rows with `input_ids` and `labels` to bring your own",
    "eos_token": "a turn ends in the token that the chat template writes. Give another template with chat_template_path",
    "router_aux_loss_coef": "no balance loss of experts is added. Leave it out",
    "trust_remote_code": "no code of a model's folder is run. Choose a model that transformers knows",
    "metric_for_best_model": "the held-out loss is what is compared. Use 'loss' or 'eval_loss', or leave it out",
    "greater_is_better": "the held-out loss is what is compared, and less of it is better. Leave it out",
    "ignore_data_skip": "a resumed run goes on with the very rows that come next. Leave it out",
    "do_predict": "use `sapwood eval` on the run's adapter to see answers and a verdict",
    "hub_strategy": "only push_to_hub() sends anything, when you call it. Leave it out",
    "hub_always_push": "only push_to_hub() sends anything, when you call it. Leave it out",
}
"""Options that would change what is learned (or promise what is not there) → what to do instead."""

_LAST = "the state after the last step is the result, and held-out figures are for you to read. Leave it out"

REFUSED_BEYOND_SFT: Mapping[str, str] = {
    "label_smoothing_factor": "the loss of this trainer has none. Leave it at 0",
    "load_best_model_at_end": _LAST,
    "metric_for_best_model": _LAST,
    "greater_is_better": _LAST,
}
"""The same for trainers that learn from preferences and rewards."""

TRAINER_REFUSED: Mapping[str, str] = {
    "data_collator": "rows are never padded, and what is trained follows from the conversation's structure, so there is nothing to "
    "collate. Leave it out; to bring labels of your own, give rows with `input_ids` and `labels`",
    "compute_loss_func": "the loss is the plain log-likelihood of what is trained. Leave it out",
    "compute_metrics": "evaluation keeps sums, never logits. Score answers with `sapwood eval`, whose verdicts have intervals",
    "preprocess_logits_for_metrics": "evaluation keeps sums, never logits. Leave it out",
    "optimizers": "the optimizer and its schedule are chosen by name. Use optim and lr_scheduler_type of SFTConfig",
    "optimizer_cls_and_kwargs": "the optimizer is chosen by name. Use optim of SFTConfig",
    "model_init": "a trainer trains one model. Give it as `model`",
    "environment_factory": "supervised fine-tuning has no environment. Leave it out",
}
"""Arguments of SFTTrainer that are taken only as None → why, and what to do."""

METHODS: Mapping[str, str] = {
    "add_callback": "Sapwood has no callbacks; metrics.jsonl in the run's folder has one record a step",
    "remove_callback": "Sapwood has no callbacks",
    "pop_callback": "Sapwood has no callbacks",
    "predict": "use `sapwood eval` on the run's adapter, or sapwood.generate.Engine",
    "hyperparameter_search": "use `sapwood` on several settings and compare the runs",
    "compute_loss": "the loss is sapwood.train.objectives.supervised",
    "training_step": "the loop is sapwood.train.sft, one function",
    "get_train_dataloader": "the order of rows is sapwood.train.order.step_examples, a function of seed and step",
    "create_optimizer": "the optimizer is sapwood.train.optimizer.Optimizer",
    "create_scheduler": "the schedule is sapwood.train.optimizer.learning_rate, a function of the step",
    "tokenize_row": "rows are made by sapwood.chat.Chat.example",
}
"""Methods of TRL's trainer that this one does not have → what to use."""

ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(
        ("RLOOTrainer", "RLOOConfig", "RewardTrainer", "RewardConfig", "ORPOTrainer", "ORPOConfig", "PPOTrainer", "PPOConfig"),
        "this method is not built",
    ),
    "DataCollatorForCompletionOnlyLM": "no marker in the text is needed: answers are trained and prompts are not, which follows from the "
    "conversation's structure. Leave the collator out, and give rows with `messages`, or with `prompt` and `completion`",
    "ConstantLengthDataset": "rows are never cut or joined. Give the rows themselves as train_dataset",
    "ModelConfig": "write the model's options as arguments, or use `sapwood sft --help`",
    "ScriptArguments": "use `sapwood sft`, whose options come from one place",
    "TrlParser": "use `sapwood sft`, whose options come from one place",
    "get_peft_config": "give peft.LoraConfig as peft_config",
    "get_quantization_config": "give transformers.BitsAndBytesConfig as quantization_config",
}
"""Other names of TRL → what to do."""


def is_neutral(value: Any) -> bool:
    """Whether an option's value asks for nothing."""
    return value is None or value is False or value in (0, "", [], {}, ())
