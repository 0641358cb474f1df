"""Programs for every platform, lowered on a machine that has none of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxsparse as js
from jaxsparse._compressed import kernel_support
from jaxsparse._patterns import nm_kernel
from tests import traceable


_CASES = {case.name: case for case in traceable.all_cases()}
_PLATFORMS = ("tpu", "cuda", "rocm")
_each_case = pytest.mark.parametrize("name", _CASES)


def _leaves(fn):
    """Returns a function with a flat list of outputs, which a file of export holds."""
    return lambda *args: jax.tree.leaves(fn(*args))


def _export(fn, args, platforms=_PLATFORMS):
    flat, structure = jax.tree.flatten(args)
    run = _leaves(lambda *leaves: fn(*structure.unflatten(leaves)))
    return export.export(jax.jit(run), platforms=platforms)(*flat)


@pytest.mark.sweep(keep=["create_asp_mask"], full=["transposable"])
@_each_case
def test_a_program_for_every_platform_computes_the_same_here(name):
    case = _CASES[name]
    program = _export(case.fn, case.args, ("cpu", *_PLATFORMS))
    assert program.platforms == ("cpu", *_PLATFORMS)
    outputs = program.call(*jax.tree.leaves(case.args))
    expected = _leaves(jax.jit(case.fn))(*case.args)
    for output, value in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(output, np.float64), np.asarray(value, np.float64), rtol=1e-5
        )


@pytest.mark.sweep(keep=["create_asp_mask", "wrap_optimizer"], full=["transposable"])
@_each_case
def test_ranks_are_never_promoted(name):
    case = _CASES[name]
    with jax.numpy_rank_promotion("raise"):
        types = jax.eval_shape(_leaves(case.fn), *case.args)
    assert types


def test_a_promoted_rank_is_noticed_in_a_cached_function():
    add = jax.jit(lambda x, y: x + y)
    add(jnp.ones((2, 3)), jnp.ones(3))
    with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="promot"):
        jax.eval_shape(lambda: add(jnp.ones((2, 3)), jnp.ones(3)))


#: Those that a kernel for one kind of GPU computes there.
_BY_KERNELS = [name for name in _CASES if "16" in name or "matmul" in name]


@pytest.mark.sweep(keep=["create_asp_mask", "wrap_optimizer"])
@pytest.mark.parametrize(
    "platforms", [("tpu",), ("rocm",), ("cuda",), ("cpu", *_PLATFORMS)], ids="-".join
)
@pytest.mark.parametrize("name", _BY_KERNELS)
def test_a_hopper_gpu_is_no_part_of_a_program(name, platforms, monkeypatch):
    monkeypatch.setattr(nm_kernel, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr(kernel_support, "unsupported_reason", lambda *_: "")
    case = _CASES[name]
    jax.clear_caches()
    text = _export(case.fn, case.args, platforms).mlir_module()
    jax.clear_caches()
    assert "mosaic" not in text
    assert "jaxsparse_nm" not in text


_SYMBOLIC = {
    "create_asp_mask": (lambda w: js.create_asp_mask(w), "16, b", jnp.float32),
    "create_asp_mask stack": (js.create_asp_mask, "b, 16, 8", jnp.float32),
    "m4n2_1d": (js.m4n2_1d, "b, 16", jnp.float32),
    "mn_1d_best": (lambda w: js.mn_1d_best(w, 16, 8), "b, 32", jnp.float32),
    "mask_params": (
        lambda w: js.mask_params({"w": w}, {"w": jnp.abs(w) > 1}),
        "b, 16",
        jnp.float32,
    ),
    "nm_matmul": (
        lambda x: js.nm_matmul(x, js.compress(traceable._WEIGHT)),
        "b, 160",
        jnp.float32,
    ),
    "nm_matmul gradient": (
        jax.grad(lambda x: js.nm_matmul(x, js.compress(traceable._WEIGHT)).sum()),
        "b, 160",
        jnp.float32,
    ),
    "sparse_apply": (
        lambda x: js.sparse_apply(traceable.model)(
            js.compress_params(traceable._PARAMS, traceable.rules("2:4")), x
        ),
        "b, 160",
        jnp.float32,
    ),
    "compress": (lambda w: js.compress(w, axis=1), "b, 16", jnp.float32),
}


@pytest.mark.sweep(keep=["create_asp_mask]"])
@pytest.mark.usefixtures("without_annotations")  # which say that sizes are integers
@pytest.mark.parametrize("name", _SYMBOLIC)
def test_shapes_may_be_symbolic(name):
    fn, shape, dtype = _SYMBOLIC[name]
    sizes = export.symbolic_shape(shape)
    program = export.export(jax.jit(_leaves(fn)), platforms=("cpu", *_PLATFORMS))(
        jax.ShapeDtypeStruct(sizes, dtype)
    )
    for b in (1, 7):
        known = [b if not isinstance(size, int) else size for size in sizes]
        x = jax.random.normal(jax.random.key(b), known, dtype)
        for output, expected in zip(program.call(x), _leaves(fn)(x), strict=True):
            np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


#: Public functions that read files, values or programs, and are not traced.
_NOT_TRACED = frozenset(
    [
        "abstract_state",
        "allocate",
        "calibration_report",
        "channel_groups",
        "check_sparsity",
        "collect_statistics",
        "compensate_low_rank",
        "contraction_axes",
        "distribute_by_erdos_renyi",
        "fit_weights",
        "flax_axes",
        "from_torch_layout",
        "get_nmprune_info",
        "grow_back",
        "input_importances",
        "leaf_uses",
        "load_sparse",
        "open_sparse",
        "open_tensors",
        "open_torch",
        "outlier_ratios",
        "permute_channels",
        "plan_sparsity",
        "prune_sequentially",
        "recalibrate_batch_stats",
        "ria_scores",
        "save_sparse",
        "save_torch",
        "sharding_report",
        "shrink_params",
        "sparsity_report",
        "to_torch_layout",
        "wanda_scores",
        "cubic_schedule",
        "one_shot_schedule",
    ]
)


def test_the_cases_are_all_public_functions():
    names = {name for case in _CASES for name in case.split()} | {"mask_params"}
    functions = {
        name
        for name in dir(js)
        if name[0].islower() and callable(getattr(js, name)) and name[0] != "_"
    }
    assert functions - _NOT_TRACED <= names
