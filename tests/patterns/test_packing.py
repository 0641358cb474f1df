"""Whether a mask fits its weight, and what the errors name."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._patterns import check_mask
from tests import reference


SHAPE = (16, 6)
MASK = np.arange(96).reshape(SHAPE) % 3 == 0


@pytest.mark.parametrize("mask", [MASK, *(reference.pack(MASK, i) for i in (0, 1))])
def test_a_mask_fits_as_bool_or_packed_along_any_axis(mask):
    check_mask(mask, SHAPE, name="a weight")


@pytest.mark.parametrize("shape", [(16, 5), (6, 16), (16,), (1, 16, 6)])
def test_the_error_names_the_weight_both_shapes_and_the_remedy(shape):
    message = (
        r"does not fit leaf 'a/b' of shape \(16, 6\): give .*\(2, 6\) or \(16, 1\)"
    )
    for dtype in (bool, np.uint8):
        with pytest.raises(ValueError, match=message):
            check_mask(jnp.zeros(shape, dtype), SHAPE, name="leaf 'a/b'")


@pytest.mark.parametrize(
    ("mask", "words"), [(1.0, "is 1.0: give a bool array"), (np.ones(SHAPE), "float64")]
)
def test_what_is_no_mask_is_a_type_error(mask, words):
    with pytest.raises(TypeError, match=rf"leaf 'a' of shape \(16, 6\) .*{words}"):
        js.mask_params({"a": jnp.ones(SHAPE)}, {"a": mask})


def test_a_leaf_that_is_not_an_array_has_no_mask():
    with pytest.raises(ValueError, match="leaf 'f' has a mask but is not an array"):
        js.mask_params({"f": len}, {"f": MASK})
