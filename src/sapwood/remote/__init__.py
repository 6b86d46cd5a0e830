"""A `Sampler` over HTTP: any server that speaks OpenAI's chat completions, on loopback or far away.

In: prompts and how to sample. Out: completions, in their order. What is asked, what is paid and what went wrong is said; a
failure is a completion with `Ended.ERROR`, never an empty answer. Nothing here imports torch.
"""

from sapwood.remote.cache import AnswerCache
from sapwood.remote.sampler import Remote, RemoteSampler

__all__ = ["AnswerCache", "Remote", "RemoteSampler"]
