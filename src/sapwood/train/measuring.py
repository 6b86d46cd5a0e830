"""How long a few layers of a model take on this machine, and how much memory: measured in seconds, kept in the cache.

In: a model's folder (its config.json is enough) and how it is to be trained. Out: an `Estimate`. The layers are built at their
real widths with random weights, and trained with the functions that training calls, on forests made up here.
Left out on purpose: the model's weights. Other programs cannot be left out: the share of the processors that they took is
kept with the times, and what was measured beside them is measured again when they are gone.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import platform
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor, nn

from sapwood import __version__, kernels
from sapwood.assets.cache import cache_root
from sapwood.config import to_dict
from sapwood.errors import ModelError, StorageError, storage
from sapwood.forest import Forest, plant
from sapwood.model import Dtype, LanguageModel, count_parameters, trainable_parameters
from sapwood.model.head import chunk_elements, head_logprobs
from sapwood.model.load import device_for, device_name, torch_dtype
from sapwood.model.new_tokens import bare
from sapwood.records import Row
from sapwood.run import write_atomic
from sapwood.train.estimate import BUSY, GIB, Estimate, Measured, Sizes, Work, work_of
from sapwood.train.memory import Tensors, Watch, free_memory, resident_memory, synchronize
from sapwood.train.miniature import VOCABULARY, miniature, on_paper
from sapwood.train.objectives import supervised
from sapwood.train.optimizer import OptimConfig, Optimizer
from sapwood.train.others import Others, others_now
from sapwood.train.sft import SftConfig

LAYERS = ((16_000_000, 6), (64_000_000, 3))
"""Layers of the larger miniature, for layers of at most so many weights; two beyond that. The smaller one has one layer.

What an allocator loses between tensors is only seen over several layers, and in small ones: large tensors have pages of their own.
"""
TOKENS = 1024
"""Tokens of the largest measured pass."""
ROUNDS, LONG_SECONDS = 5, 6.0
"""Every forest is measured once a round; no round begins after so many seconds."""
UPDATED = 8_000_000
"""Numbers in the update that is measured, where more are trained."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight of 4 bits, with a scale of 8 bits for 64 of them and one of 32 for 256 scales (arXiv:2305.14314, §3)."""
MOST_HOLES = 16.0
"""An allocator that loses more than this many times what it holds was measured wrongly."""
PLACES, HEAD_VOCABULARY = 256, 8192
"""Size of the head that is measured; the whole one takes as much more as its vocabulary is larger."""


def estimate(
    folder: Path, config: SftConfig, dtype: Dtype, *, new_tokens: Collection[int] = (), anew: bool = False, timed: bool = True
) -> tuple[Estimate, LanguageModel]:
    """The estimate, and the model on paper, which knows whether its passes share prefixes. `anew` measures again what is known.

    Without `timed` only memory need be known, which takes less: times are 0 where they were not measured before.

    A model that cannot be measured in part, or of which a part is too large for this machine, is only counted.
    Raises `ModelError` for a family that cannot be counted either, `ConfigError` for options that training would refuse.
    """
    device = device_for()
    program = resident_memory(device)
    whole = on_paper(folder, config, dtype, new_tokens)
    path = cache_root() / "measured" / f"{_key(whole, config, dtype)}.json"
    sizes = _sizes(folder, whole, config, dtype, program)
    found = None if anew else _read(path)
    if timed and found is not None and found.others > BUSY >= others_now():
        found = None  # measured beside other programs, which are gone
    why = ""
    if found is None:
        try:
            found = _measure(folder, whole, config, dtype, timed)
        except ModelError as error:
            why = str(error)
        if found is not None and timed:
            with suppress(StorageError), storage(path, "write"):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, orjson.dumps(dataclasses.asdict(found)))
    if found is not None:
        whole.shares_prefixes = found.shares
    return Estimate(sizes=sizes, measured=found, unmeasured=why), whole


def _key(whole: LanguageModel, config: SftConfig, dtype: Dtype) -> str:
    """Of all that the measurement depends on: the model's shape, how it is trained, and the machine."""
    shape = whole.base.config.to_dict()
    for changing in ("_name_or_path", "transformers_version"):
        shape.pop(changing, None)
    settings = [to_dict(config.lora), config.full, config.checkpointing, config.optim.optimizer, str(torch_dtype(dtype)), dtype == "nf4"]
    served = kernels.version() if torch_dtype(dtype) == torch.bfloat16 else ""
    machine = [platform.machine(), device_name(device_for()), _processor(), torch.get_num_threads(), torch.__version__, __version__, served]
    content = orjson.dumps([shape, settings, machine], default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()[:32]


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line
    return platform.processor()


def _read(path: Path) -> Measured | None:
    try:
        return Measured(**orjson.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):  # not there, or of another making: measured again
        return None


def _sizes(folder: Path, whole: LanguageModel, config: SftConfig, dtype: Dtype, program: int) -> Sizes:
    trained = trainable_parameters(whole)
    base = {id(parameter): parameter for name, parameter in whole.module.named_parameters() if ".lora_" not in name}
    weights = sum(parameter.numel() * parameter.element_size() for parameter in base.values())
    if dtype == "nf4":
        weights -= sum(parameter.numel() * (parameter.element_size() - NF4_BYTES) for parameter in _quantized(whole))
    weights += sum(buffer.numel() * buffer.element_size() for buffer in whole.module.buffers())
    beside = [parameter for parameter in trained.values() if id(parameter) not in base]
    kinds = {parameter.dtype: 0 for parameter in trained.values()}
    for parameter in trained.values():
        kinds[parameter.dtype] += parameter.numel()
    costs = {kind: _optimizer_bytes(config.optim, kind) for kind in kinds}
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Sizes(
        parameters=count_parameters(whole),
        layers=int(whole.base.config.get_text_config().num_hidden_layers),
        program=program,
        weights=int(weights),
        adapters=sum(parameter.numel() * parameter.element_size() for parameter in beside),
        trained=sum(parameter.numel() * parameter.element_size() for parameter in trained.values()),
        wide=weights > 2.5 * count_parameters(whole).total,
        gradients=sum(parameter.numel() * parameter.element_size() for parameter in trained.values()),
        embedding=max(
            (parameter.numel() * parameter.element_size() for parameter in trained.values() if len(parameter) == whole.vocabulary),
            default=0,
        ),
        optimizer=int(sum(count * costs[kind][0] for kind, count in kinds.items())),
        update=int(sum(count * costs[kind][1] for kind, count in kinds.items())),
        loading=0 if abs(stored - weights) < 0.1 * weights else stored,  # weights of the right type stay where they are mapped
    )


def _quantized(whole: LanguageModel) -> list[nn.Parameter]:
    """The weights that NF4 keeps in 4 bits: of the linear layers, not of the head."""
    head = whole.base.get_output_embeddings()
    return [layer.weight for name, layer in whole.module.named_modules() if _is_linear(name, layer) and layer is not head]


def _is_linear(name: str, layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and ".lora_" not in name


def _optimizer_bytes(config: OptimConfig, kind: torch.dtype) -> tuple[float, float]:
    """Bytes a trained number of this type: what the optimizer keeps, and what an update holds for a moment beyond that."""
    parameter = nn.Parameter(torch.ones(512, 512, dtype=kind))
    gradient = torch.ones_like(parameter)
    with Tensors([parameter, gradient]) as alive:
        optimizer = Optimizer({"one": parameter}, config)
        parameter.grad = gradient
        optimizer.step(0.0)
        kept, peak = alive.now, alive.peak
    return kept / parameter.numel(), (peak - kept) / parameter.numel()


def _layers_of_miniature(whole: LanguageModel) -> int:
    """Layers of the larger miniature. Raises `ModelError` where even two are too much for this machine."""
    text = whole.base.config.get_text_config()
    depth = int(text.num_hidden_layers)
    in_layers = count_parameters(whole).total - 2 * whole.vocabulary * int(text.hidden_size)
    a_layer = max(0, in_layers) // depth
    layers = min(depth, next((count for most, count in LAYERS if a_layer <= most), 2))
    need, free = 4 * a_layer * (layers + 1), free_memory(device_for())
    if need > free / 2:
        raise ModelError(
            f"Nothing was measured: {layers + 1} of its layers take up to {need / GIB:.1f} GiB, and this machine has {free / GIB:.1f} GiB "
            "free. Memory and time of the passes are not known."
        )
    return layers


def _measure(folder: Path, whole: LanguageModel, config: SftConfig, dtype: Dtype, timed: bool) -> Measured:
    looking = Others()
    layers = _layers_of_miniature(whole)
    one, several = (miniature(folder, config, dtype, count) for count in (1, layers))
    before = resident_memory(one.device)
    _pass(one, _rows(1, 64))
    brought = max(0, resident_memory(one.device) - before)
    forest = _rows(1, TOKENS)
    memory = _memory(one, several, layers, forest)
    speeds: dict[str, Any] = _speeds(several, layers, forest) if timed else {}
    place_seconds, head_bytes = _head(whole, torch_dtype(dtype), config.full)
    update = _update(config.optim, trainable_parameters(whole)) if timed else 0.0
    measured = Measured(
        **{**_UNTIMED, **speeds},
        **memory,
        place_seconds=place_seconds,
        update_seconds=update,
        kernels_bytes=brought,
        head_bytes=head_bytes,
        shares=several.shares_prefixes,
        others=looking.share(),
    )
    del one, several
    gc.collect()
    return measured


_UNTIMED: dict[str, Any] = dict.fromkeys(("pass_seconds", "token_seconds", "pair_seconds", "forward_share"), 0.0)


def _speeds(several: LanguageModel, layers: int, forest: Forest) -> dict[str, float]:
    """Seconds of one layer: a pass, a token and a pair; and what forward alone is of that."""
    forests = [forest, _rows(4, TOKENS // 4), _rows(TOKENS // 128, 128), _rows(1, TOKENS // 4)]
    works: list[Callable[[], None]] = [partial(_pass, several, made) for made in forests]
    *seconds, forward = (value / layers for value in _timed([*works, partial(_forward, several, forest)]))
    pass_seconds, token_seconds, pair_seconds = _fitted([work_of([made]) for made in forests], seconds)
    return {
        "pass_seconds": pass_seconds,
        "token_seconds": token_seconds,
        "pair_seconds": pair_seconds,
        "forward_share": min(1.0, forward / seconds[0]),
    }


def _rows(count: int, length: int) -> Forest:
    """Rows that share nothing; a quarter of each is trained."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, VOCABULARY, (count, length + 1))
    ids[:, 0] = np.arange(count) % VOCABULARY
    prompt = length + 1 - length // 4
    return plant([Row(row[:prompt], row[prompt:], np.ones(length // 4, np.float32)) for row in ids])


def _pass(model: LanguageModel, forest: Forest) -> None:
    for part in _parts(model, forest):
        supervised(model.target_logprobs(part), part).backward()  # type: ignore[no-untyped-call]
    for parameter in model.module.parameters():
        parameter.grad = None


def _forward(model: LanguageModel, forest: Forest) -> None:
    with torch.inference_mode():
        for part in _parts(model, forest):
            supervised(model.target_logprobs(part), part)


def _parts(model: LanguageModel, forest: Forest) -> Iterable[Forest]:
    """The forest, or where rows run alone, one of its rows for each."""
    if model.shares_prefixes:
        return [forest]
    return [_rows(1, int(end - start)) for start, end, _ in forest.nodes_M]


def _timed(works: Sequence[Callable[[], None]]) -> list[float]:
    """Seconds of each: the median of rounds that take them in turn, so that what else the machine does falls on all alike."""
    taken: list[list[float]] = [[] for _ in works]
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for work, seconds in zip(works, taken, strict=True):
            synchronize(device_for())
            begin = time.perf_counter()
            work()
            synchronize(device_for())
            seconds.append(time.perf_counter() - begin)
        if time.perf_counter() - began > LONG_SECONDS:
            break
    return [median(seconds) for seconds in taken]


def _fitted(samples: list[Work], seconds: list[float]) -> tuple[float, float, float]:
    """Seconds a pass, a token and a pair that explain what was measured, none of them negative."""
    features = np.array([[work.passes, work.tokens, work.pairs] for work in samples], dtype=float)
    scale = features.max(axis=0)
    from scipy.optimize import nnls  # half a second, which only a first measurement takes

    found, _ = nnls(features / scale / np.array(seconds)[:, None], np.ones(len(seconds)))
    pass_seconds, token_seconds, pair_seconds = (float(value) for value in found / scale)
    return pass_seconds, token_seconds, pair_seconds


def _memory(one: LanguageModel, several: LanguageModel, layers: int, forest: Forest) -> dict[str, Any]:
    """What layers keep for the backward pass, counted; and how much more the process grows than that, seen."""
    tokens = forest.num_tokens
    before = resident_memory(one.device)
    peaks = []
    for model in (one, several):
        with Watch(one.device) as watch:
            _pass(model, forest)
        peaks.append(watch.peak - before)
    kept, most = zip(*(_counted(model, forest) for model in (one, several)), strict=True)
    gaps = max(1, layers - 1)
    layer, alive = ((each[1] - each[0]) / gaps if layers > 1 else float(each[1]) for each in (kept, most))
    grown = (peaks[1] - peaks[0]) / gaps
    holes = min(MOST_HOLES, max(1.0, grown / alive)) if alive > 0 else 1.0
    return {
        "layer_bytes": layer * holes / tokens,
        "ends_bytes": (ends := max(0.0, most[1] - layers * layer)) / tokens,
        "fixed_bytes": max(0, int(peaks[1] - layers * grown - ends)),
    }


def _counted(model: LanguageModel, forest: Forest) -> tuple[int, int]:
    """Bytes of the tensors of a pass: kept when it turns to go back, and at its peak."""
    part = next(iter(_parts(model, forest)))
    with Tensors([*model.module.parameters(), *model.module.buffers()]) as alive:
        loss: Tensor = supervised(model.target_logprobs(part), part)
        kept, alive.peak = alive.now, alive.now
        loss.backward()  # type: ignore[no-untyped-call]
        most = alive.peak
    for parameter in model.module.parameters():
        parameter.grad = None
    return kept, most


def _head(whole: LanguageModel, kind: torch.dtype, full: bool) -> tuple[float, int]:
    """Seconds a place of the whole head, and the bytes that it holds for a moment."""
    head = whole.base.get_output_embeddings()
    width, vocabulary = int(bare(head).weight.shape[1]), whole.vocabulary
    size = min(HEAD_VOCABULARY, vocabulary)
    device = device_for()
    part = nn.Linear(width, size, bias=False, dtype=kind, device=device).requires_grad_(full)
    hidden = torch.randn(PLACES, width).to(device, kind).requires_grad_()
    places = torch.arange(PLACES, device=device)

    def work() -> None:
        head_logprobs(hidden, part, places, places % size).sum().backward()  # type: ignore[no-untyped-call]

    work()
    seconds = _timed([work])[0] / PLACES * vocabulary / size
    with Tensors([hidden, part.weight]) as alive:
        work()
    a_logit = alive.peak / (PLACES * size)
    return seconds, int(min(a_logit, 16) * chunk_elements(device))


def _update(config: OptimConfig, trained: Mapping[str, nn.Parameter]) -> float:
    """Seconds of an update a trained number, on the first of the trained tensors."""
    some: dict[str, nn.Parameter] = {}
    total = 0
    for name, parameter in trained.items():
        if some and total + parameter.numel() > UPDATED:
            break
        some[name] = nn.Parameter(torch.ones(parameter.shape, dtype=parameter.dtype, device=device_for()))
        total += parameter.numel()
    optimizer = Optimizer(some, config)

    def work() -> None:
        for parameter in some.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(0.0)

    work()
    return _timed([work])[0] / total
