"""Code that a model wrote, run in a child process that can reach nothing: for scores and rewards by tests.

In: a program and its tests as text. Out: an `Outcome`: passed, or how it ended otherwise. Nothing runs where the kernel cannot
cut the network and the files (Linux has what it takes; elsewhere use a container or a virtual machine with Linux in it).

`running` starts and watches the child; `confine` is the child's first program, which gives everything up; `inside` is its second,
which runs the code. What holds was tried, not assumed: `barriers`.
Left out on purpose: packages (the child sees Python's own library alone), other languages, a way to write outside of its scratch folder.
"""

from sapwood.evaluate.sandbox.barriers import Barriers, barriers, require_barriers
from sapwood.evaluate.sandbox.running import Limits, Outcome, run_tests

__all__ = ["Barriers", "Limits", "Outcome", "barriers", "require_barriers", "run_tests"]
