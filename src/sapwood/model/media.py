"""Images and sounds through a model's own towers: features in the places of a forest.

In: the tokens of a flat row, and contents with their places. Out: input embeddings with the features in them. Each
distinct content goes through its tower once. The tower's arithmetic is the model's own (`get_image_features` and the like);
what is here is which families are known to work exactly, and how each is called.
Left out on purpose: video; families whose image tokens see each other both ways (Gemma 3, PaliGemma). They are refused by
name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from sapwood.errors import ModelError
from sapwood.forest import ForestMedia
from sapwood.records import Content, MediaKind


@dataclass(frozen=True, slots=True)
class Family:
    """A covered family: its class in transformers, what it takes, and the class of its processor."""

    model: str
    processor: str
    kinds: tuple[MediaKind, ...]
    several_axes: bool = False
    """Whether positions run in time, height and width."""
    coarser_among_others: bool = False
    """Whether an image is looked at in less detail where the prompt holds several."""


FAMILIES: Mapping[str, Family] = {
    "llava": Family("LlavaForConditionalGeneration", "LlavaProcessor", ("image",)),
    "llava_next": Family("LlavaNextForConditionalGeneration", "LlavaNextProcessor", ("image",)),
    "llava_onevision": Family("LlavaOnevisionForConditionalGeneration", "LlavaOnevisionProcessor", ("image",), coarser_among_others=True),
    "idefics3": Family("Idefics3ForConditionalGeneration", "Idefics3Processor", ("image",)),
    "smolvlm": Family("SmolVLMForConditionalGeneration", "SmolVLMProcessor", ("image",)),
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor", ("image",), several_axes=True),
    "qwen2_5_vl": Family("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", ("image",), several_axes=True),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", "Qwen3VLProcessor", ("image",), several_axes=True),
    "internvl": Family("InternVLForConditionalGeneration", "InternVLProcessor", ("image",)),
    "qwen2_audio": Family("Qwen2AudioForConditionalGeneration", "Qwen2AudioProcessor", ("audio",)),
}
"""By `model_type`. Each is tested against transformers' own processor and forward."""

WHY_NOT = {
    "gemma3": "its image tokens see each other in both directions, which sharing prefixes does not do yet",
    "paligemma": "its prompt is seen in both directions, which sharing prefixes does not do yet",
    "mllama": "it reads images by cross-attention, which is not done yet",
    "mistral3": "its processor needs torchvision, which Sapwood does not use",
    "pixtral": "its processor needs torchvision, which Sapwood does not use",
    "granite_speech": "its processor needs torchaudio, which Sapwood does not use",
    "voxtral": "its tokenizer is not in the tokenizers format",
}
"""Families that people will try, and what stands in the way."""


def family_of(model_type: str, where: str) -> Family:
    """The family of a `model_type`. Raises `ModelError` naming it and those that are covered."""
    family = FAMILIES.get(model_type)
    if family is None:
        why = WHY_NOT.get(model_type)
        raise ModelError(
            f"{where}: images and sounds are not covered for the family {model_type!r}{f': {why}' if why else ''}. Covered: "
            + ", ".join(f"{name} ({', '.join(found.kinds)})" for name, found in FAMILIES.items())
            + ". Choose a model of one of these, or leave out the rows with media."
        )
    return family


def embed(base: Any, tokens_T: NDArray[np.int64], media: Sequence[ForestMedia]) -> dict[str, Any]:
    """What the decoder is called with: `inputs_embeds` (1, T, D) with the features of each content at all of its places.

    For a model whose image features enter at later layers too (DeepStack, arXiv:2406.04334), those features as well.
    Differentiable. Raises `ModelError` for a family that is not covered, or a tower that gives another number of features
    than there are places.
    """
    family = family_of(base.config.model_type, type(base).__name__)
    table = base.get_input_embeddings()
    embedded_TD: Tensor = table(torch.from_numpy(tokens_T).to(table.weight.device))
    places: list[Tensor] = []
    features: list[list[Tensor]] = []
    for medium in media:
        found_FD, *later = (layer.to(embedded_TD) for layer in _features(base, family, medium.content))
        if len(found_FD) != medium.content.length:
            raise ModelError(
                f"{type(base).__name__}: its tower gives {len(found_FD)} features for an {medium.content.kind}, where its processor made "
                f"{medium.content.length} places. Model and processor do not belong together; fetch the model's folder again."
            )
        for places_F in medium.places_OF:
            here_F = torch.from_numpy(places_F >= 0)
            places.append(torch.from_numpy(places_F)[here_F])
            features.append([layer[here_F.to(layer.device)] for layer in (found_FD, *later)])
    places_N = torch.cat(places).to(embedded_TD.device)
    first_ND, *later = (torch.cat(layer) for layer in zip(*features, strict=True))
    found: dict[str, Any] = {"inputs_embeds": embedded_TD.index_copy(0, places_N, first_ND)[None]}
    if later:  # they are taken in the order of their places
        marked_T = torch.zeros(len(tokens_T), dtype=torch.bool, device=embedded_TD.device).index_fill(0, places_N, True)
        found |= {"visual_pos_masks": marked_T[None], "deepstack_visual_embeds": [layer[places_N.argsort()] for layer in later]}
    return found


def _features(base: Any, family: Family, content: Content) -> list[Tensor]:
    """Features (F, D) of one content, and those of later layers; without a graph where nothing of the tower is trained."""
    if content.kind not in family.kinds:
        raise ModelError(f"{type(base).__name__} takes no {content.kind}; it takes {', '.join(family.kinds)}.")
    arrays = {name: torch.from_numpy(np.ascontiguousarray(array)).to(base.device) for name, array in content.load().items()}
    arrays = {name: array.to(base.dtype) if array.is_floating_point() else array for name, array in arrays.items()}
    with torch.set_grad_enabled(torch.is_grad_enabled() and tower_is_trained(base)):
        if content.kind == "image":
            found = base.model.get_image_features(**arrays, return_dict=True)
            return [_joined(layer) for layer in (found.pooler_output, *(getattr(found, "deepstack_features", None) or ()))]
        return [_qwen2_audio(base, **arrays)]


def _joined(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Features (F, D) of an image, which families give as one tensor, in tiles, or in a list."""
    parts = [features] if isinstance(features, Tensor) else features
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def tower_is_trained(base: Any) -> bool:
    """Whether any weight outside the language model and its head has a gradient."""
    decoder = {id(parameter) for parameter in base.get_decoder().parameters()}
    decoder |= {id(parameter) for parameter in base.get_output_embeddings().parameters()}
    return any(parameter.requires_grad for parameter in base.parameters() if id(parameter) not in decoder)


def _qwen2_audio(base: Any, input_features: Tensor, feature_attention_mask: Tensor) -> Tensor:
    """As `Qwen2AudioModel.forward` does it for a sound whose places the processor has made (transformers 5.23)."""
    tower = base.model.audio_tower
    lengths, output_lengths = tower._get_feat_extract_output_lengths(feature_attention_mask.sum(-1))
    longest = (input_features.shape[-1] - 2) // 2 + 1
    heard = (torch.arange(longest, device=lengths.device)[None] < lengths[:, None]).long()
    mask = create_bidirectional_mask(
        config=tower.config, inputs_embeds=input_features.new_zeros(len(input_features), longest, 1), attention_mask=heard
    )
    features = base.model.multi_modal_projector(tower(input_features, attention_mask=mask).last_hidden_state)
    kept = torch.arange(features.shape[1], device=features.device)[None] < output_lengths[:, None]
    return torch.as_tensor(features[kept])
