"""What leaves Sapwood: merged weights, PEFT folders, GGUF files, cards; each compared with what was trained.

In: a trained model, its chat, prompts of its run. Out: folders that other programs load, each with `export.json`, which holds
what was compared and what came out.
"""
