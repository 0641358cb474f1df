"""Quantized leaves in files: three tensors, and what the metadata say of them."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

import jaxsparse as js
from tests.compressed.layout_oracle import assert_same_bits
from tests.files.saved import assert_same, stored, tree
from tests.files.test_io_invalid_files import change_metadata
from tests.files.test_torch_layout import attention, weights


def quantized(**options):
    head = stored(1, (2, 32), jnp.bfloat16, 4, 8, 1)
    return tree() | {
        "mlp": {"kernel": js.quantize_compressed(stored(0), **options)},
        "head": {"kernel": js.quantize_compressed(head, "float8_e4m3fn")},
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.sweep(keep=["options1"])
@pytest.mark.parametrize("options", [{}, {"dtype": "float8_e4m3fn", "group_size": 8}])
def test_quantized_trees_are_loaded_bit_for_bit(path, options):
    expected = quantized(**options)
    js.save_sparse(path, expected)
    assert_same(js.load_sparse(path), expected)
    assert_same(js.load_sparse(path, like=expected), expected)
    dense = jax.tree.map(jnp.zeros_like, js.decompress_params(expected))
    assert_same(js.load_sparse(path, like=dense), expected)
    plain = tree()
    with pytest.raises(js.SparseFileError, match=r"axis -1 in float8_e4m3fn, but in"):
        js.load_sparse(path, like=plain)


def test_other_readers_see_eight_bits(path):
    expected = quantized()
    js.save_sparse(path, expected)
    leaf = expected["mlp"]["kernel"]
    with safetensors.safe_open(path, "np") as file:
        for field in ("values", "indices", "scales"):
            tensor = file.get_tensor(f"mlp/kernel/{field}")
            assert_same_bits(tensor, np.asarray(getattr(leaf, field)))
        metadata = json.loads(file.metadata()["jaxsparse"])["leaves"]
        assert file.get_slice("head/kernel/values").get_dtype() == "F8_E4M3"
    assert metadata["head/kernel"] == {
        "dtype": "bfloat16",
        "shape": [2, 32],
        "pattern": "4:8",
        "axis": -1,
        "quantized": "float8_e4m3fn",
        "scales": [2, 1],
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"quantized": "int4"},
        {"quantized": "float16"},
        {"quantized": "float8_e4m3fn"},
        {"scales": [1, 4]},
        {"scales": [8]},
        {"scales": [3, 8]},
        {"scales": None},
        {"dtype": "int32"},
    ],
)
def test_metadata_that_do_not_match_the_tensors(path, changes):
    js.save_sparse(path, quantized())
    change_metadata(path, "mlp/kernel", **changes)
    with pytest.raises(js.SparseFileError):
        js.load_sparse(path)


KERNEL = js.quantize_compressed(stored(0), group_size=8)


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (replace(KERNEL, scales=KERNEL.scales[:, :4]), r"scales of shape \(2, 4\)"),
        (replace(KERNEL, scales=KERNEL.scales[0]), r"scales of shape \(8,\)"),
        (replace(KERNEL, scales=jnp.ones((3, 8))), r"scales of shape \(3, 8\)"),
        (replace(KERNEL, scales=jnp.ones((0, 8))), r"scales of shape \(0, 8\)"),
        (replace(KERNEL, scales=None), "with no scales, expected float32"),
        (replace(KERNEL, scales=KERNEL.scales.astype("bfloat16")), "bfloat16 scales"),
        (replace(KERNEL, values=KERNEL.values * 1.0), "quantized values of float32"),
        (replace(KERNEL, quantized_from=jnp.dtype("int8")), "quantized from int8"),
        (replace(KERNEL, quantized_from=None), "without quantized_from"),
    ],
)
def test_arrays_that_do_not_fit_are_neither_saved_nor_passed(path, leaf, words):
    with pytest.raises(ValueError, match=f"'w' .*{words}"):
        js.save_sparse(path, {"w": leaf})
    with pytest.raises(ValueError, match=f"'w' .*{words}"):
        js.check_sparsity({"w": leaf}, [js.Rule("w", "2:4", axis=0)])


@pytest.mark.sweep
def test_the_layout_of_torch_moves_scales():
    params = attention(8) | {"up": {"kernel": weights((16, 8))}}
    rules = [js.Rule("(query|key|value)/.*", None), js.Rule(".*", "2:4", sizes=None)]
    small = js.compress_params(params, rules)
    trees = [js.compress_params(params, rules, quantize="int8"), small]
    for name in ("up", "out"):
        kernel = js.quantize_compressed(small[name]["kernel"], group_size=8)
        trees[1] |= {name: {"kernel": kernel}}
    for small in trees:
        moved = js.to_torch_layout(small)
        dense = js.to_torch_layout(js.decompress_params(small))
        for name in ("up.weight", "out.weight"):
            assert_same_bits(js.decompress(moved[name]), np.asarray(dense[name]))


@pytest.mark.sweep
def test_the_values_of_int8_in_pytorchs_format():
    rng = np.random.default_rng(1)
    small = js.quantize_compressed(js.compress(rng.normal(size=(64, 16)), axis=0))
    values, meta = js.to_semi_structured(small)
    back = js.from_semi_structured(values, meta)
    assert_same_bits(back.values, np.asarray(small.values))
    assert_same_bits(back.indices, np.asarray(small.indices))
    eight = js.quantize_compressed(js.compress(jnp.ones((64, 16))), "float8_e4m3fn")
    with pytest.raises(ValueError, match="int8, got float8_e4m3fn"):
        js.to_semi_structured(eight)
