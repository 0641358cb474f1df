"""Second moments shrunk towards their diagonal.

Correlations between inputs that few tokens show, or tokens of one kind, are partly
those of the sample: weights that rely on them fit the sample and lose elsewhere.
Shrinking keeps what each input weighs, and trusts less in how inputs vary together.
Ledoit and Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance
Matrices" (2004, Journal of Multivariate Analysis 88), shrink towards a multiple of the
identity. The inputs of a layer differ in scale, so the target here is the diagonal.
"""

from typing import Literal

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float32


#: A fraction, or the best of a few by held-out error.
Shrinkage = float | Literal["auto"]

#: The default. The guide to calibration has what it gains on a language model.
SHRINKAGE = 0.1


def check_shrinkage(shrinkage: Shrinkage) -> None:
    """Raises unless the fraction is from 0 to 1, or "auto".

    Raises:
      ValueError: it is not.
    """
    if shrinkage == "auto":
        return
    if isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise ValueError(
            "shrinkage must be the fraction, from 0 to 1, by which correlations of "
            f"inputs are reduced, such as 0.1, or 'auto', got {shrinkage!r}"
        )


def shrink(
    moments: Float32[Array, "*problem input input"], shrinkage: ArrayLike
) -> Float32[Array, "*problem input input"]:
    """Returns the second moments with their off-diagonal entries reduced.

    Args:
      moments: second moments.
      shrinkage: the fraction that is taken away: 0 changes nothing, 1 leaves the
        diagonal.
    """
    kept = 1 - jnp.asarray(shrinkage, jnp.float32)
    is_diagonal = jnp.eye(moments.shape[-1], dtype=jnp.bool_)
    return jnp.where(is_diagonal, moments, kept * moments)
