"""Products by the kernel over two GPUs: multiplied where they are, added up by NCCL."""

import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from tests.compressed.layout_oracle import as_compressed, masked, random_mask
from tests.compressed.test_cuda_stacks import whole_numbers
from tests.gpu import needs_gpus


KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def placed(tree, spec):
    mesh = jax.make_mesh((2,), ("m",), axis_types=(AxisType.Auto,))
    return jax.device_put(tree, NamedSharding(mesh, spec))


def collectives(fn, *args):
    """How many collectives of each kind the compiled function has."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    ops = [line.split(" = ")[-1] for line in text.splitlines() if " = " in line]
    counts = {
        k: sum(f" {k}(" in op or f" {k}-start(" in op for op in ops) for k in KINDS
    }
    return {kind: count for kind, count in counts.items() if count}


@needs_gpus(2)
@pytest.mark.parametrize(
    ("rows", "columns", "sent"),
    [
        (P("m"), P(), {}),
        (P(), P(None, "m"), {}),
        (P(None, "m"), P("m"), {"all-reduce": 1}),  # k is sharded
    ],
)
def test_products_are_made_where_the_shards_are(rows, columns, sent):
    rng = np.random.default_rng(0)
    weight = rng.integers(-2, 3, (128, 256)).astype(ml_dtypes.bfloat16)
    mask = random_mask(rng, weight.shape, 2, 4, 0)
    stored = placed(as_compressed(weight, mask, 2, 4, 0), columns)
    x = rng.integers(-2, 3, (64, 128)).astype(ml_dtypes.bfloat16)
    on_gpus = placed(x, rows)
    assert collectives(js.nm_matmul, on_gpus, stored) == sent
    exact = x.astype(int) @ masked(weight, mask).astype(int)
    product = jax.jit(js.nm_matmul)(on_gpus, stored)
    np.testing.assert_array_equal(np.asarray(product).astype(int), exact)


@needs_gpus(2)
@pytest.mark.parametrize("rows", [5, 200])
def test_each_gpu_multiplies_by_its_own_experts(rows):
    x, stored, exact = whole_numbers(6, rows, 136, 400, ml_dtypes.bfloat16)
    args = placed((x, stored), P("m"))
    multiply = jax.vmap(js.nm_matmul)
    assert not collectives(multiply, *args)
    np.testing.assert_array_equal(jax.jit(multiply)(*args), exact)


@needs_gpus(2)
def test_attention_is_tensor_parallel_with_one_all_reduce():
    model = nn.MultiHeadDotProductAttention(4, dtype="bfloat16", param_dtype="bfloat16")
    x = np.random.default_rng(0).normal(size=(2, 16, 64)).astype(ml_dtypes.bfloat16)
    params = model.init(jax.random.key(0), x)
    plan = js.plan_sparsity(params, fn=model.apply, args=(x,), dense_head=False)
    assert len(plan.sparse) == 4
    small = js.compress_params(params, plan)
    spec = {"query": P(None, "m"), "key": P(None, "m"), "value": P(None, "m")}
    spec |= {"out": P("m")}
    for name, layer in small["params"].items():
        layer["kernel"] = placed(layer["kernel"], spec[name])
        cut = P("m") if name != "out" else P()
        layer["bias"] = placed(layer["bias"], cut)
    x = placed(x, P())
    run = js.sparse_apply(model.apply, plan, implementation="cuda")
    assert collectives(run, small, x) == {"all-reduce": 1}
    wide = lambda leaf: np.asarray(leaf).astype(np.float32)
    dense = jax.tree.map(wide, js.decompress_params(small))
    with jax.default_matmul_precision("highest"):
        exact = nn.MultiHeadDotProductAttention(4).apply(dense, wide(x))
    # Four products in bfloat16, one after the other, of values of the size of one.
    np.testing.assert_allclose(wide(jax.jit(run)(small, x)), exact, atol=2**-6)


@needs_gpus(2)
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_trees_are_searched_masked_and_trained_without_communication(kind):
    """A process of its own; this one holds most of the GPUs' memory."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.sharding.layouts", kind],
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
