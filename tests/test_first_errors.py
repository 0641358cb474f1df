"""The errors of the first hour: each is one line that has the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js


W = np.arange(1, 513, dtype=np.float32).reshape(32, 16)
PARAMS = {"kernel": W}


def forward(params, x):
    return x @ params["kernel"]


def args_without_a_tuple():
    js.plan_sparsity(PARAMS, "2:4", fn=forward, args=jnp.ones((4, 32)))


def shape_without_a_tuple():
    x = jax.ShapeDtypeStruct((4, 32), "float32")
    js.plan_sparsity(PARAMS, "2:4", fn=forward, args=x)


def matmul_with_a_dense_weight():
    js.nm_matmul(jnp.ones((4, 32)), W)


def array_at_compressed():
    return jnp.ones((4, 32)) @ js.compress(W)


def numpy_at_compressed():
    return np.ones((4, 32)) @ js.compress(W)


def compressed_at_array():
    return js.compress(W) @ jnp.ones((16, 4))


def array_decompressed():
    js.decompress(W)


def tree_decompressed():
    js.decompress({"kernel": js.compress(W)})


def step_for_a_schedule():
    js.wrap_optimizer(optax.sgd(0.1), "2:4", schedule=1000)


def step_for_the_last_link():
    js.keep_params_sparse("2:4", schedule=1000)


def fraction_for_a_pattern():
    js.plan_sparsity(PARAMS, 0.5)


def percentage_for_a_pattern():
    js.plan_sparsity(PARAMS, "50%")


def percentage_in_a_rule():
    js.Rule(".*", "75 %")


def compressed_twice():
    js.compress_params(js.compress_params(PARAMS), quantize="int8")


def deleted():
    leaf = jnp.array(W)
    leaf.delete()
    return {"kernel": leaf}


def masks_of_donated_params():
    js.create_masks(deleted(), "2:4")


def donated_params_masked():
    js.mask_params(deleted(), {"kernel": W > 9})


def pattern_for_masks():
    js.mask_params(PARAMS, "2:4")


def rules_for_masks():
    js.mask_params(PARAMS, [js.Rule(".*", "2:4")])


def sizes_for_masks():
    js.fit_weights(PARAMS, (2, 4), {})


def plan_for_masks():
    js.mask_params(PARAMS, js.plan_sparsity(PARAMS, "2:4"))


def plan_for_first_masks():
    plan = js.plan_sparsity(PARAMS, "2:4")
    js.wrap_optimizer(optax.sgd(0.1), masks=plan).init(PARAMS)


def donated_params_in_init():
    js.wrap_optimizer(optax.sgd(0.1), "2:4").init(deleted())


@pytest.mark.usefixtures("without_annotations")
@pytest.mark.parametrize(
    ("mistake", "kind", "remedy"),
    [
        (args_without_a_tuple, TypeError, "args=(x,)"),
        (shape_without_a_tuple, TypeError, "args=(x,)"),
        (matmul_with_a_dense_weight, TypeError, "compress(w, '2:4', axis=0)"),
        (array_at_compressed, TypeError, "nm_matmul(x, w)"),
        (numpy_at_compressed, TypeError, "sparse_apply(fn)"),
        (compressed_at_array, TypeError, "nm_matmul(x, w)"),
        (array_decompressed, TypeError, "takes a Compressed weight"),
        (tree_decompressed, TypeError, "decompress_params(params)"),
        (step_for_a_schedule, TypeError, "one_shot_schedule(1000)"),
        (step_for_the_last_link, TypeError, "one_shot_schedule(1000)"),
        (fraction_for_a_pattern, TypeError, "Unstructured(0.5)"),
        (percentage_for_a_pattern, ValueError, "Unstructured(0.5)"),
        (percentage_in_a_rule, ValueError, "Unstructured(0.75)"),
        (pattern_for_masks, TypeError, "create_masks(params, plan)"),
        (rules_for_masks, TypeError, "create_masks(params, plan)"),
        (sizes_for_masks, TypeError, "create_masks(params, plan)"),
        (plan_for_masks, TypeError, "create_masks(params, plan)"),
        (plan_for_first_masks, TypeError, "create_masks(params, plan)"),
        (compressed_twice, ValueError, "'kernel' of shape (32, 16) is compressed"),
        (masks_of_donated_params, RuntimeError, "'kernel' of shape (32, 16)"),
        (donated_params_masked, RuntimeError, "the tree that this call returned"),
        (donated_params_in_init, RuntimeError, "the tree that this call returned"),
    ],
)
def test_the_error_has_the_remedy_in_one_line(mistake, kind, remedy):
    with pytest.raises(kind) as error:
        mistake()
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)
