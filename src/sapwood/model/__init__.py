"""Models: loading them with ancestor attention, their head, their adapters.

In: a folder of safetensors. Out: a `LanguageModel`, which turns forests into log-probabilities, and the adapters that
training changes and saves.
"""

from sapwood.model.adapters import Parameters, count_parameters, load_adapter, save_adapter, saved_values, train_whole, trainable_parameters
from sapwood.model.checkpointing import checkpoint_layers
from sapwood.model.language_model import LanguageModel
from sapwood.model.load import Device, Dtype, device_for, device_name, load_model
from sapwood.model.lora import LoraConfig, add_lora, drawing
from sapwood.model.new_tokens import learn_tokens

__all__ = [
    "Device",
    "Dtype",
    "LanguageModel",
    "LoraConfig",
    "Parameters",
    "add_lora",
    "checkpoint_layers",
    "count_parameters",
    "device_for",
    "device_name",
    "drawing",
    "learn_tokens",
    "load_adapter",
    "load_model",
    "save_adapter",
    "saved_values",
    "train_whole",
    "trainable_parameters",
]
