"""Tiny random models that see or hear, each a whole folder: weights, processor, tokenizer, template. Nothing comes from a hub."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tokenizers
import torch
import transformers
from PIL import Image
from torch import nn

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<video>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]
CORPUS = ["what is in this picture or sound: a red square, a low tone, noise", "one two three four five", "system user assistant answer"]

_TURNS = (
    "{%% for m in messages %%}<|im_start|>{{ m.role }}\n{%% if m.content is string %%}{{ m.content }}{%% else %%}"
    "{%% for part in m.content %%}{%% if part.type == '%s' %%}%s{%% else %%}{{ part.text }}{%% endif %%}{%% endfor %%}{%% endif %%}"
    "<|im_end|>\n{%% endfor %%}{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
LLAVA_TEMPLATE = (  # images first, and content only as parts, as LLaVA's own
    "{% for m in messages %}{{ m['role'] | upper + ': ' }}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{% if m['role'] == 'assistant' %}<|im_end|>{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
TEMPLATES = {
    "llava": LLAVA_TEMPLATE,
    "llava_next": LLAVA_TEMPLATE,
    "llava_onevision": _TURNS % ("image", "<image>\n"),
    "idefics3": _TURNS % ("image", "<image>"),
    "smolvlm": _TURNS % ("image", "<image>"),
    "qwen2_vl": _TURNS % ("image", "<|vision_start|><|image_pad|><|vision_end|>"),
    "qwen2_5_vl": _TURNS % ("image", "<|vision_start|><|image_pad|><|vision_end|>"),
    "qwen3_vl": _TURNS % ("image", "<|vision_start|><|image_pad|><|vision_end|>"),
    "internvl": _TURNS % ("image", "<IMG_CONTEXT>\n"),
    "qwen2_audio": _TURNS % ("audio", "Audio: <|audio_bos|><|AUDIO|><|audio_eos|>\n"),
}
IMAGE_FAMILIES = [name for name in TEMPLATES if name != "qwen2_audio"]


def image_bytes(seed: int, width: int = 48, height: int = 32) -> bytes:
    """A random picture as PNG."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def sound_bytes(seed: int, seconds: float = 0.3, rate: int = 16_000) -> bytes:
    """A random sound as WAV, mono."""
    out = io.BytesIO()
    soundfile.write(out, np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32), rate, format="WAV")
    return out.getvalue()


def make_tokenizer() -> Any:
    """A byte-level BPE with the special tokens of all families."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=370, special_tokens=SPECIALS, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_media_model(folder: Path, family: str, *, seed: int = 0) -> Path:
    """Write a loadable folder of `family` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    ids = {token: tokenizer.token_to_id(token) for token in SPECIALS}
    tokenizer.save(str(folder / "tokenizer.json"))
    described: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if family == "internvl":
        described["extra_special_tokens"] = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "chat_template.jinja").write_text(TEMPLATES[family])
    config, settings = _MAKERS[family](ids, tokenizer.get_vocab_size())
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content))
    tiny_media_model(config, torch.float64, seed=seed).to(torch.float32).save_pretrained(folder)
    return folder


def tiny_media_model(config: Any, dtype: torch.dtype, *, attention: Any = "sdpa", seed: int = 0) -> Any:
    """A random model of a config, with weights large enough that every part matters."""
    torch.manual_seed(seed)
    model = getattr(transformers, config.architectures[0])._from_config(config, attn_implementation=attention, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
        else:
            nn.init.normal_(parameter, mean=1.0 if "norm" in name and "bias" not in name else 0.0, std=0.2)
    return model.to(dtype).eval()


def _text(vocabulary: int, kind: Any = transformers.LlamaConfig, **more: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return kind(**{**sizes, **more})


_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_CLIP_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
}


def _llava(ids: dict[str, int], vocabulary: int) -> tuple[Any, dict[str, Any]]:
    vision = transformers.CLIPVisionConfig(**_VISION, image_size=28, patch_size=7, projection_dim=16)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=_text(vocabulary),
        image_token_index=ids["<image>"],
        architectures=["LlavaForConditionalGeneration"],
    )
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": 7,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    return config, {"preprocessor_config.json": {**_CLIP_IMAGES, "processor_class": "LlavaProcessor"}, "processor_config.json": processor}


def _llava_next(ids: dict[str, int], vocabulary: int) -> tuple[Any, dict[str, Any]]:
    vision = transformers.CLIPVisionConfig(**_VISION, image_size=28, patch_size=7, projection_dim=16)
    grid = [[28, 56], [56, 28], [56, 56]]
    config = transformers.LlavaNextConfig(
        vision_config=vision,
        text_config=_text(vocabulary),
        image_token_index=ids["<image>"],
        image_grid_pinpoints=grid,
        architectures=["LlavaNextForConditionalGeneration"],
    )
    images = {**_CLIP_IMAGES, "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": grid}
    processor = {
        "processor_class": "LlavaNextProcessor",
        "patch_size": 7,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    return config, {"preprocessor_config.json": images, "processor_config.json": processor}


def _llava_onevision(ids: dict[str, int], vocabulary: int) -> tuple[Any, dict[str, Any]]:
    vision = transformers.SiglipVisionConfig(**_VISION, image_size=28, patch_size=7, vision_use_head=False)
    grid = [[28, 56], [56, 28], [56, 56]]
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=_text(vocabulary, transformers.Qwen2Config),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )
    images = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "size": {"height": 28, "width": 28},
        "image_grid_pinpoints": grid,
    }
    processor = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": 16,
        "vision_feature_select_strategy": "full",
    }
    return config, {"preprocessor_config.json": images, "processor_config.json": processor}


def _idefics3(ids: dict[str, int], vocabulary: int) -> tuple[Any, dict[str, Any]]:
    return _tiled(ids, vocabulary, "Idefics3", transformers.Idefics3Config)


def _smolvlm(ids: dict[str, int], vocabulary: int) -> tuple[Any, dict[str, Any]]:
    return _tiled(ids, vocabulary, "SmolVLM", transformers.SmolVLMConfig)


def _tiled(ids: dict[str, int], vocabulary: int, name: str, kind: Any) -> tuple[Any, dict[str, Any]]:
    """A picture cut into tiles of 16 x 16, four tokens each, and a small copy of the whole."""
    config = kind(
        vision_config={**_VISION, "image_size": 16, "patch_size": 4},
        text_config=_text(vocabulary),
        image_token_id=ids["<image>"],
        scale_factor=2,
        architectures=[f"{name}ForConditionalGeneration"],
    )
    images = {"image_processor_type": f"{name}ImageProcessor", "size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    return config, {
        "preprocessor_config.json": images,
        "processor_config.json": {"processor_class": f"{name}Processor", "image_seq_len": 4},
    }


def _internvl(ids: dict[str, int], vocabulary: int) -> tuple[Any, dict[str, Any]]:
    config = transformers.InternVLConfig(
        vision_config={**_VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        text_config=_text(vocabulary, transformers.Qwen2Config),
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
        architectures=["InternVLForConditionalGeneration"],
    )
    images = {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 28, "width": 28}, "max_patches": 4}
    return config, {
        "preprocessor_config.json": images,
        "processor_config.json": {"processor_class": "InternVLProcessor", "image_seq_length": 4},
    }


def _qwen2_vl(ids: dict[str, int], vocabulary: int) -> tuple[Any, dict[str, Any]]:
    vision = {"embed_dim": 16, "depth": 2, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4, "spatial_merge_size": 2}
    return _axes(ids, vocabulary, "Qwen2VL", transformers.Qwen2VLConfig, vision)


def _qwen2_5_vl(ids: dict[str, int], vocabulary: int) -> tuple[Any, dict[str, Any]]:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return _axes(ids, vocabulary, "Qwen2_5_VL", transformers.Qwen2_5_VLConfig, vision)


def _qwen3_vl(ids: dict[str, int], vocabulary: int) -> tuple[Any, dict[str, Any]]:
    vision = {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return _axes(ids, vocabulary, "Qwen3VL", transformers.Qwen3VLConfig, vision, head_dim=8)


def _axes(ids: dict[str, int], vocabulary: int, name: str, kind: Any, vision: dict[str, Any], **text: Any) -> tuple[Any, dict[str, Any]]:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    config = kind(
        vision_config={**vision, "temporal_patch_size": 2},
        text_config=_text(vocabulary, dict, rope_parameters=rope, **text),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        architectures=[f"{name}ForConditionalGeneration"],
    )
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 64, "longest_edge": 1024},
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
    }
    return config, {"preprocessor_config.json": {**images, "processor_class": f"{name}Processor"}}


def _qwen2_audio(ids: dict[str, int], vocabulary: int) -> tuple[Any, dict[str, Any]]:
    audio = {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": 8,
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "max_source_positions": 50,
    }
    config = transformers.Qwen2AudioConfig(
        audio_config=audio,
        text_config=_text(vocabulary, transformers.Qwen2Config),
        audio_token_index=ids["<|AUDIO|>"],
        architectures=["Qwen2AudioForConditionalGeneration"],
    )
    sounds = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 8,
        "chunk_length": 1,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "return_attention_mask": True,
    }
    return config, {"preprocessor_config.json": {**sounds, "processor_class": "Qwen2AudioProcessor"}}


_MAKERS: dict[str, Callable[[dict[str, int], int], tuple[Any, dict[str, Any]]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "qwen2_audio": _qwen2_audio,
}
