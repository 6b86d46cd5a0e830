"""An OpenAI-compatible server over the engine: the prompts of training, the tokens of evaluation, the plain `openai` client.

In: HTTP requests. Out: answers, whole or streamed. One thread owns the engine; the event loop talks to it through a queue.
"""

from sapwood.serve.app import Front, make_app
from sapwood.serve.asking import Served
from sapwood.serve.limits import Access, ServeLimits
from sapwood.serve.worker import Worker

__all__ = ["Access", "Front", "ServeLimits", "Served", "Worker", "make_app"]
