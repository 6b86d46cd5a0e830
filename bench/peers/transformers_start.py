"""What a user of transformers writes: load a chat model, read a question, stream the answer.

echo "Say hello." | python -m bench.peers.transformers_start MODEL
"""

from __future__ import annotations

import sys

import transformers

folder = sys.argv[1]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
question = [{"role": "user", "content": sys.stdin.readline().strip()}]
asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
model.generate(**asked, max_new_tokens=8, do_sample=False, streamer=transformers.TextStreamer(tokenizer, skip_prompt=True))
