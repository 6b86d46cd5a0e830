"""Kernels in C++ for training and generation on a CPU, compiled once for this processor, used where they are seen to agree with torch.

In: the sources beside this file, and a C++ compiler (`compiling`). Out: operators under `torch.ops.sapwood_cpu`, or nothing and the
reason. What they replace stays in the code: without a compiler, on another processor, or with `SAPWOOD_KERNELS=0` everything runs on
torch's own operators, slower and with the same results up to rounding in bf16. fp64 never comes here, fp32 to the attention of a
decode step alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from sapwood.kernels.compiling import begin, compiled, may_serve, target

BESIDE = "they are being compiled beside this program, and serve from the next start on"
_put_off: list[bool] = []
"""Whether this process goes on without them: said before anything has asked for them."""


@cache
def cpu_kernels() -> Any | None:
    """`torch.ops.sapwood_cpu`, or None. The first call on a machine compiles, which takes ten to twenty seconds."""
    return _load()[0]


def why_not() -> str:
    """The reason for which there are no kernels; empty where there are."""
    return _load()[1]


def version() -> str:
    """A name of the kernels that serve here, made from all that they depend on; empty where none do."""
    return target().stem if cpu_kernels() is not None else ""


def is_compiled() -> bool:
    """Whether the next call needs no compiler."""
    return not may_serve() or target().is_file()


def prepare(dtype: torch.dtype, say: Callable[[str], None]) -> None:
    """Compile before a model of this type trains, where that is to be done; `say` hears why it takes time, and if it failed."""
    if dtype == torch.bfloat16 and not is_compiled():
        say("Compiling the kernels for this processor: ten to twenty seconds, once.")
        if cpu_kernels() is None:
            say(f"They are left out, and training is slower: {why_not()}.")


def compile_beside(say: Callable[[str], None]) -> None:
    """Where they are not compiled yet, do without them in this process, and let the next one have them: for who waits for a first word.

    Must be called before anything has asked for them.
    """
    if is_compiled():
        return
    with contextlib.suppress(OSError):
        begin(niceness=10)
        _put_off.append(True)
        say("The kernels for this processor are being compiled in the background, once: answers are slower until you start this again.")


def serves(*tensors: torch.Tensor) -> Any | None:
    """The kernels, where all tensors are bf16 on a CPU; else None."""
    if any(tensor.dtype != torch.bfloat16 or tensor.device.type != "cpu" for tensor in tensors):
        return None
    return cpu_kernels()


@cache
def _load() -> tuple[Any | None, str]:
    if os.environ.get("SAPWOOD_KERNELS", "1") == "0":
        return None, "SAPWOOD_KERNELS is 0"
    if _put_off:
        return None, BESIDE
    if not may_serve():
        return None, "they need Linux, a processor with AVX-512, and a C++ compiler (c++, g++ or clang++, or the one that CXX names)"
    if words := compiled():
        return None, f"the compiler refused: {words}"
    try:
        torch.ops.load_library(str(target()))  # type: ignore[no-untyped-call]
        kernels = torch.ops.sapwood_cpu
        agrees = _agrees(kernels)
    except (OSError, RuntimeError) as error:  # another torch, or a processor that has no such products
        return None, f"they do not run here: {error}".splitlines()[0]
    return (kernels, "") if agrees else (None, "they do not give what torch gives")


def _agrees(kernels: Any) -> bool:
    """Is each kernel within bf16's rounding of the plain formula, on a few random numbers?"""
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").bfloat16()

    def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return bool((found.float() - expected.float()).norm() < 0.02 * expected.float().norm())

    with torch.inference_mode(False), torch.enable_grad():
        gate, up, grad = (draw(5, 64).requires_grad_() for _ in range(3))
        weight = draw(64)
        gated = torch.nn.functional.silu(gate.float()) * up.float()
        normed = torch.nn.functional.rms_norm(gate.float(), (64,), weight.float(), 1e-6)
        grads = torch.autograd.grad(gated, (gate, up), grad.detach().float())
        (norm_grad,) = torch.autograd.grad(normed, gate, grad.detach().float())
        query, key, value = (draw(heads, 40, 32).requires_grad_() for heads in (4, 2, 2))
        q, k, v = (tensor.float()[None] for tensor in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0]
        attended_grads = torch.autograd.grad(attended.sum(), (query, key, value))
        scores = (q @ k.repeat_interleave(2, 1).mT)[0] * 32**-0.5
        lse = scores.masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf).logsumexp(-1)
    with torch.no_grad():
        ones = torch.ones_like(attended).bfloat16()
        whole = torch.tensor([[0, 40, 0, 40, 1]])
        out, found_lse = kernels.tree_forward(query, key, value, whole, 32**-0.5)
        found = kernels.tree_backward(ones, query, key, value, attended.bfloat16(), lse, whole, 32**-0.5)
        angle = torch.linspace(0, 3, 7 * 32).view(7, 32).repeat(1, 2)
        turned, cos, sin = draw(7, 2, 64), angle.cos().bfloat16(), angle.sin().bfloat16()
        halves = torch.cat([-turned[..., 32:], turned[..., :32]], -1).float()
        expected_turn = turned.float() * cos[:, None].float() + halves * sin[:, None].float()
        y, inverse = kernels.rms_forward(gate, weight, 1e-6)
        other = draw(50, 70)
        logits, token = draw(3, 70), torch.tensor([1, 69, 5])
        row_lse = kernels.row_lse(logits)
        pulled = kernels.pull(logits, row_lse, torch.arange(3), token)
        expected = logits.float().softmax(-1) - torch.nn.functional.one_hot(token, 70)
        return (
            near(out, attended)
            and torch.allclose(found_lse, lse, atol=1e-2)
            and all(near(one, other) for one, other in zip(found, attended_grads, strict=True))
            and near(kernels.rotate(turned, cos, sin, False), expected_turn)
            and near(kernels.rotate(kernels.rotate(turned, cos, sin, False), cos, sin, True), turned)
            and all(near(one, other) for one, other in zip(kernels.swiglu_backward(grad, gate, up), grads, strict=True))
            and near(kernels.swiglu_forward(gate, up), gated)
            and near(y, normed)
            and near(kernels.rms_backward(grad, gate, weight, inverse), norm_grad)
            and _decodes(kernels, query, key, value)
            and _projects(kernels, draw)
            and near(kernels.packed_product(logits, kernels.pack_weight(other), 50, None), logits.float() @ other.float().T)
            and _draws(kernels, logits)
            and torch.allclose(row_lse, logits.float().logsumexp(-1), atol=1e-3)
            and near(pulled, expected)
            and torch.equal(kernels.pull_(logits, row_lse, token), pulled)
        )


def _draws(kernels: Any, logits: torch.Tensor) -> bool:
    """The most likely token of each row, and of the two most likely ones that with the smaller id."""
    settings = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    greedy, first = (kernels.draw_tokens(logits, each.repeat(len(logits), 1), None, None, None, None)[0] for each in settings)
    return torch.equal(greedy, logits.argmax(-1)) and torch.equal(first, logits.topk(2).indices.amin(-1))


def _projects(kernels: Any, draw: Callable[..., torch.Tensor]) -> bool:
    """Two LoRA layers over 37 rows, there and back, against the plain products; the second has a bias."""
    x, weights, grads = draw(37, 64), [draw(96, 64), draw(32, 64)], [draw(37, 96), draw(37, 32)]
    all_A, all_B = [draw(4, 64).float(), draw(2, 64).float()], [draw(96, 4).float(), draw(32, 2).float()]
    biases = [draw(0), draw(32)]
    outputs, h = kernels.lora_forward(x, weights, biases, all_A, all_B, [0.5, 2.0])
    grad_x, grad_A, found_B = kernels.lora_backward(x, h, grads, weights, all_A, all_B, [0.5, 2.0], True)
    fine, wide, sums, first = True, x.float(), torch.zeros(37, 64), 0
    for i, scale in enumerate((0.5, 2.0)):
        A, B, g, last = all_A[i], all_B[i], grads[i].float(), first + len(all_A[i])
        expected = wide @ weights[i].float().T + scale * (wide @ A.T) @ B.T + (biases[i].float() if len(biases[i]) else 0)
        sums += g @ weights[i].float() + scale * (g @ B) @ A
        pairs = (
            (outputs[i], expected),
            (h[:, first:last], wide @ A.T),
            (grad_A[first:last], scale * (g @ B).T @ wide),
            (found_B[i], scale * g.T @ (wide @ A.T)),
        )
        fine = fine and all(bool((found.float() - truth).norm() < 0.02 * truth.norm()) for found, truth in pairs)
        first = last
    return fine and bool((grad_x.float() - sums).norm() < 0.02 * sums.norm())


def _decodes(kernels: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """The last two tokens of (H, 40, 32): five tokens above both are one node, seven above the last another, the rest their own."""
    length_N, row_N = torch.tensor([38 - 5, 39 - 12]), torch.arange(2)
    cache, values = (torch.stack([side.roll(-5, 1), side.roll(-12, 1)]) for side in (key, value))
    cache[row_N, :, length_N] = values[row_N, :, length_N] = 0  # the kernel is to write what is new
    above = [[side[:, :5], side[:, 5:12]] for side in (key, value)]
    own = query[:, -2:], key[:, -2:], value[:, -2:], cache, values, length_N, 0, 32**-0.5
    out, lse = kernels.decode_attention(*own, *above, [row_N, row_N[1:]])
    scores = (query.float() @ key.float().repeat_interleave(2, 0).mT) * 32**-0.5
    scores = scores.masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) @ value.float().repeat_interleave(2, 0))[:, -2:].transpose(0, 1)
    fine = bool((out - expected).norm() < 0.01 * expected.norm())  # weights are rounded to bf16
    return fine and torch.allclose(lse, scores.logsumexp(-1)[:, -2:].T, atol=1e-4)
