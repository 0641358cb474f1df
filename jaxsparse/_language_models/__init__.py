"""The forward passes of Hugging Face's decoders, as stages of plain functions."""

from jaxsparse._language_models.architectures import (
    MODEL_TYPES as MODEL_TYPES,
    language_model as language_model,
)
from jaxsparse._language_models.model import (
    LanguageModel as LanguageModel,
    Stage as Stage,
    check_tensors as check_tensors,
)
