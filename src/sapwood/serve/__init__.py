"""An OpenAI-compatible server over the engine: the prompts of training, the tokens of evaluation, the plain `openai` client.

In: HTTP requests. Out: answers, whole or streamed. One thread owns the engine (`worker`); the event loop talks to it through a
queue (`under_way`). Nothing is imported here: `app` and `running` need the extra `web`, the rest does not.
"""
