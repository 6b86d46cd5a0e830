"""How models write function calls: one small frozen style for each way, and `STYLES` with all of them.

In: the text of an answer from the place where a call begins. Out: the calls, or why there are none. Which style a template
has is not looked up by a model's name: `chat.parsing` renders a probe and takes the style that gives it back.
"""

from sapwood.chat.calls.frames import FRAMES, FrameStyle
from sapwood.chat.calls.gemma import GEMMA
from sapwood.chat.calls.objects import COHERE, DEEPSEEK, HERMES, LLAMA, MISTRAL_ARGS, MISTRAL_LIST, PROMPTED
from sapwood.chat.calls.python import CODE, LFM, LFM_RAW, PYTHONIC
from sapwood.chat.calls.scan import CallStyle, Scan
from sapwood.chat.calls.tags import GLM, XML

STYLES: tuple[CallStyle | FrameStyle, ...] = (
    HERMES,
    XML,
    GLM,
    MISTRAL_LIST,
    MISTRAL_ARGS,
    DEEPSEEK,
    COHERE,
    GEMMA,
    LFM,
    LFM_RAW,
    CODE,
    LLAMA,
    PYTHONIC,
    *FRAMES,
    PROMPTED,
)
"""All styles, in the order in which they are tried on a template's probe."""

__all__ = ["PROMPTED", "STYLES", "CallStyle", "FrameStyle", "Scan"]
