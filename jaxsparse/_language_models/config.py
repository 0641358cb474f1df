"""The fields of a `config.json`: each is honoured, has no effect, or is refused."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


#: Fields without effect on a forward pass: bookkeeping, training, generation, heads.
_WITHOUT_EFFECT = {
    *("architectures", "model_type", "transformers_version", "_name_or_path", "dtype"),
    *("torch_dtype", "initializer_range", "use_cache", "gradient_checkpointing"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"),
    *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
    *("output_attentions", "output_hidden_states", "return_dict", "torchscript"),
    *("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p"),
    *("num_beams", "repetition_penalty", "length_penalty", "task_specific_params"),
    *(
        "id2label",
        "label2id",
        "num_labels",
        "_num_labels",
        "problem_type",
        "finetuning_task",
    ),
    *("tokenizer_class", "prefix", "chunk_size_feed_forward", "is_llama_config"),
    *("_attn_implementation", "transformers.js_config", "unsloth_version"),
    *("unsloth_fixed", "max_sequence_length", "_attn_implementation_autoset"),
}


@dataclass(frozen=True)
class Config:
    """The fields of a `config.json`.

    Attributes:
      fields: the values by name.
      prefix: what is put before names in errors: of the object that the fields are in.
    """

    fields: Mapping[str, Any]
    prefix: str = ""

    def integer(self, name: str, default: int | None = None) -> int:
        """Returns a positive integer; raises `ValueError` if it is none."""
        value = self._value(name, default)
        if type(value) is not int or value < 1:
            raise self.error(name, "it must be a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a positive number; raises `ValueError` if it is none."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not value > 0:
            raise self.error(name, "it must be a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Returns a bool; raises `ValueError` if it is none."""
        value = self._value(name, default)
        if type(value) is not bool:
            raise self.error(name, "it must be true or false")
        return value

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """Returns one of some texts; raises `ValueError` if it is another one."""
        value = self._value(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(name, f"only {', '.join(choices)} can be calibrated")
        return value

    def check_names(
        self, honoured: Collection[str], fixed: Mapping[str, Any] | None = None
    ) -> None:
        """Raises `ValueError` for a field that the forward pass does not honour.

        Fields that are unknown and null or false turn nothing on.

        Args:
          honoured: the names of the fields that the forward pass honours.
          fixed: the only values of other fields that it can have.
        """
        for name, value in self.fields.items():
            if name in honoured or name in _WITHOUT_EFFECT:
                continue
            if fixed is not None and name in fixed:
                if value not in (fixed[name], None):
                    raise self.error(name, f"only {fixed[name]!r} can be calibrated")
            elif value is not None and value is not False:
                raise self.error(name, "the forward pass does not know this field")

    def error(self, name: str, problem: str) -> ValueError:
        """Returns an error about a field, with its value."""
        value = f" is {self.fields[name]!r}" if name in self.fields else " is missing"
        return ValueError(f"config.json: {self.prefix}{name}{value}: {problem}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.fields.get(name)
        return default if value is None else value
