"""A program for each shape, not for each leaf."""

import jax
import numpy as np
import pytest

import jaxsparse as js


SHAPES = [(16, 8), (8, 16), (32, 8), (8, 32), (16, 16), (32, 16), (16, 32)]
RULES = [js.Rule(".*", "2:4", axis=0, sizes=None)]
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def programs():
    """The programs compiled since the test began."""
    found = []

    def listen(event: str, duration_secs: float, **_: str | int):
        if event == COMPILED:
            found.append(duration_secs)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.sweep
@pytest.mark.parametrize("packed", [False, True])
def test_300_leaves_of_7_shapes_take_7_programs(programs, packed):
    rng = np.random.default_rng(0)
    shapes = [SHAPES[i % 7] for i in range(300)]
    leaves = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    params = {f"{i}": jax.device_put(leaf) for i, leaf in enumerate(leaves)}
    plan = js.plan_sparsity(params, RULES)
    assert not programs  # a plan compiles nothing
    masks = js.create_masks(params, plan, packed=packed)
    assert len(programs) == 7
    js.mask_params(params, masks)
    assert len(programs) == 14
    js.create_masks(js.mask_params(params, masks), plan, packed=packed)
    assert len(programs) == 14


@pytest.mark.sweep
def test_the_pattern_and_the_dtype_make_a_program_of_their_own(programs):
    leaf = np.eye(16, 8, dtype=np.float32)
    params = {"a": jax.device_put(leaf), "b": jax.device_put(leaf.astype(np.float16))}
    js.create_masks(params, RULES)
    assert len(programs) == 2
    js.create_masks(params, [js.Rule(".*", "1:4", axis=0, sizes=None)])
    assert len(programs) == 4
