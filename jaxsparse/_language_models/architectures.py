"""The architectures that there are, by the `model_type` of their `config.json`."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxsparse._language_models.config import Config
from jaxsparse._language_models.gpt2 import gpt2
from jaxsparse._language_models.llama import llama
from jaxsparse._language_models.model import LanguageModel


#: The classes of each model type: with a head, and without one.
_CLASSES = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
    "llama": ("LlamaForCausalLM", "LlamaModel"),
    "mistral": ("MistralForCausalLM", "MistralModel"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Model"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Model"),
}

#: The model types.
MODEL_TYPES = tuple(_CLASSES)


def language_model(fields: Mapping[str, Any], names: Collection[str]) -> LanguageModel:
    """Returns the model that a `config.json` describes.

    Args:
      fields: the object of the `config.json`.
      names: the names of the tensors of the model's files.

    Raises:
      ValueError: the architecture is not among `MODEL_TYPES`, or a field is invalid or
        one that its forward pass does not honour. The error names the field.
    """
    config = Config(fields)
    model_type = config.fields.get("model_type")
    if model_type not in _CLASSES:
        choices = ", ".join(MODEL_TYPES)
        raise config.error("model_type", f"only {choices} can be calibrated")
    for architecture in config.fields.get("architectures") or ():
        if architecture not in _CLASSES[model_type]:
            choices = " and ".join(_CLASSES[model_type])
            raise config.error("architectures", f"only {choices} can be calibrated")
    if model_type == "gpt2":
        return gpt2(config, names)
    return llama(model_type, config, names)
