"""Measured comparisons: workloads, the peers they are measured against, and the harness that runs both side by side.

    sapwood bench data          preparing a file of conversations, against TRL
    sapwood bench sft           a training step: against TRL at its defaults and tuned, and against the time of its matrix products
    sapwood bench parity        the losses of a training, step by step, against TRL
    sapwood bench generate      writing text, against transformers' `generate` and llama.cpp
    sapwood bench sharing       a training pass as a forest, against the same rows with nothing shared
    sapwood bench growth        how the cost of a pass grows with rows, length, sharing and the model's width
    sapwood bench memory        peak memory of training by unique tokens: predicted, and measured
    sapwood bench start         from the command to the first training step, and to the first word of an answer
    sapwood bench reason        cold-start SFT, then GRPO with a verifier, against as much time of more SFT
    sapwood bench grpo          a whole step of reinforcement learning, against TRL
    sapwood bench eval          multiple-choice questions with few-shot examples, against lm-eval's own backend
    sapwood bench fused-lora    a training pass with the fused layers, against peft's and transformers' own

    python -m bench.NAME        what has no peer: same_answers, constrained, drawing, together, serve_load, review_load, review_pages;
                                and …_page, which write the lines of a page that follow from committed results

    workload (data.py, …)       what is done, what counts as the same work, what the result says
    workloads.py, losses.py     of sft: the rows that all train; whether they trained alike
    sweep.py, limit.py          of sft: what a tuned peer is; the products that no step can do without
    contestant.py               one contestant's process, from the inside: JSON lines in, JSON lines out (standard library only)
    process.py                  the same process from the outside: asking, and watching its memory
    rounds.py                   A B A B …, medians and ratios
    setting.py                  where a number was measured; .venv-bench, where the peers live
    result.py, picture.py       the result as a file, as lines of a page, and as an SVG
    peers/                      one script a contestant; each runs in the environment of the tool that it speaks for

Not part of the installed package: whoever doubts a number reads this folder and runs it from a checkout.
"""
