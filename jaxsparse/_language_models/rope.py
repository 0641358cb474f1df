"""Rotary position embeddings (RoPE), and how models scale their frequencies.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021,
arXiv:2104.09864). Llama 3.1 stretches the longer wavelengths: Grattafiori et al., "The
Llama 3 Herd of Models" (2024, arXiv:2407.21783).
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsparse._language_models.config import Config


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's scaling, by the names in `config.json`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


@dataclass(frozen=True)
class Rope:
    """Rotary position embeddings.

    Attributes:
      size: the number of features of a head.
      base: the ratio of the longest to the shortest wavelength.
      scaling: how frequencies are scaled, None if they are not.
    """

    size: int
    base: float
    scaling: Llama3Scaling | None = None


#: The fields of `config.json` that `read_rope` reads.
ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters")


def read_rope(config: Config, size: int) -> Rope:
    """Returns the embeddings of heads of `size` features.

    Raises:
      ValueError: their type is neither `default` nor `llama3`, or a field is invalid.
    """
    name = "rope_parameters" if config.fields.get("rope_parameters") else "rope_scaling"
    fields = config.fields.get(name) or {}
    if not isinstance(fields, dict):
        raise config.error(name, "it must be an object")
    scaling = Config(fields, f"{name}.")
    # Older files call the type `type`.
    key = "rope_type" if "rope_type" in fields else "type"
    kind = scaling.choice(key, ("default", "llama3"), "default")
    outer = config.number("rope_theta", 10000.0)
    base = scaling.number("rope_theta", outer)
    if size % 2:
        raise config.error("head_dim", f"heads of {size} features cannot be rotated")
    honoured = {"rope_type", "type", "rope_theta"}
    if kind == "default":
        scaling.check_names(honoured, {"partial_rotary_factor": 1.0})
        return Rope(size, base)
    names = (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    )
    scaling.check_names({*honoured, *names}, {"partial_rotary_factor": 1.0})
    numbers = Llama3Scaling(*map(scaling.number, names))
    if numbers.high_freq_factor <= numbers.low_freq_factor:
        raise scaling.error("high_freq_factor", "it must exceed low_freq_factor")
    return Rope(size, base, numbers)


def frequencies(rope: Rope) -> np.ndarray:
    """Returns the angle by which each pair of features turns from token to token.

    >>> frequencies(Rope(4, 100.0))
    array([1. , 0.1])
    """
    angles = rope.base ** -(np.arange(0, rope.size, 2) / rope.size)
    if (scaling := rope.scaling) is None:
        return angles
    # How often a pair turns around within the positions of the first training. From
    # the low to the high factor, frequencies change smoothly from divided to kept.
    turns = scaling.original_max_position_embeddings * angles / (2 * np.pi)
    width = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / width, 0, 1)
    return angles * (kept + (1 - kept) / scaling.factor)


def rotate(
    x: Float[Array, "batch token head feature"], rope: Rope
) -> Float[Array, "batch token head feature"]:
    """Rotates features `i` and `i + size / 2` of each head by the token's position."""
    angles = np.arange(x.shape[1])[:, None] * frequencies(rope)
    # NumPy's float64: in float32 the angles of late tokens have few correct digits.
    cos = jnp.asarray(np.cos(angles)[:, None].astype(x.dtype))
    sin = jnp.asarray(np.sin(angles)[:, None].astype(x.dtype))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
