"""What the compiled programs write to memory: packed masks, never the masks."""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse as js
from tests.trace.tracing import shape


PARAMS = {"up": {"kernel": shape(512, 1024)}, "down": {"kernel": shape(1024, 512)}}
SIZE = 512 * 1024
OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "sgd": optax.sgd(0.1, momentum=0.9),
    "lion": optax.lion(1e-3),
    "adafactor": optax.adafactor(1e-3),
}


def large_byte_arrays(fn, *args):
    """The top-level results of the optimised HLO with a byte for every weight."""
    text = jax.jit(fn).lower(*args).compile().as_text() or ""
    found = []
    for line in text[text.index("\nENTRY ") :].splitlines():
        # `%name = type op(...)`; the type of a tuple has parentheses of its own.
        types = re.match(r"\s+(?:ROOT )?\S+ = (\(.*?\)|\S+) \S+\(", line)
        written = types.group(1) if types else ""
        for sizes in re.findall(r"(?:pred|[us]8)\[([\d,]+)\]", written):
            if math.prod(map(int, sizes.split(","))) >= SIZE:
                found.append(line.strip())
    return found


def rules(pattern):
    return [js.Rule(".*", pattern, axis=0, sizes=None)]


def packed_masks(pattern):
    return lambda params: js.create_masks(params, rules(pattern), packed=True)


def test_a_mask_in_memory_would_be_found():
    through_bool = lambda params: js.create_masks(params, rules("2:4"))
    assert len(large_byte_arrays(through_bool, PARAMS)) >= 2


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "8:16"])
def test_packed_masks_are_found_and_applied_without_the_mask(pattern):
    find = packed_masks(pattern)
    masks = jax.eval_shape(find, PARAMS)
    assert masks["up"]["kernel"].dtype == jnp.uint8
    assert not large_byte_arrays(find, PARAMS)
    assert not large_byte_arrays(js.mask_params, PARAMS, masks)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_step_never_writes_a_mask(name):
    tx = js.wrap_optimizer(OPTIMIZERS[name], rules("2:4"))

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, PARAMS)
    assert not large_byte_arrays(step, PARAMS, state, PARAMS)
