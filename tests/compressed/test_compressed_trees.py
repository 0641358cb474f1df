"""Every public function either takes compressed weights as what they stand for, or
refuses them and says what to give: none takes their values for weights."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from tests.test_import import PUBLIC


KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {
    "up": {"kernel": jax.random.normal(KEYS[0], (64, 32)), "bias": jnp.ones(32)},
    "down": {"kernel": jax.random.normal(KEYS[1], (32, 16))},
}
X = jax.random.normal(KEYS[2], (256, 64))
RULES = [js.Rule(".*kernel", "2:4", axis=0), js.Rule(".*", None)]


def model(params, x):
    hidden = jax.nn.relu(x @ params["up"]["kernel"] + params["up"]["bias"])
    return hidden @ params["down"]["kernel"]


PLAN = js.plan_sparsity(PARAMS, RULES)
MASKS = js.create_masks(PARAMS, PLAN)
KERNEL = jnp.where(MASKS["up"]["kernel"], PARAMS["up"]["kernel"], 0)
DENSE = js.mask_params(PARAMS, MASKS)
SMALL = js.compress_params(PARAMS, PLAN)
WEIGHT = SMALL["up"]["kernel"]
TX = js.wrap_optimizer(optax.sgd(0.1), PLAN)
KEY = jax.random.key(1)


@functools.cache
def statistics():
    return js.collect_statistics(model, PARAMS, [X], plan=PLAN)


def update(tx):
    """An update of an optimizer whose state is that of the dense parameters."""
    return lambda params: tx.update(PARAMS, tx.init(PARAMS), params)


def regrown(regrow, **options):
    return regrow(optax.sgd(0.1), PLAN, fraction=lambda _: 0.3, every=1, **options)


def search(searcher):
    return lambda params: searcher(PLAN).search(params, statistics())


def prune_in_order(params):
    searcher = js.MagnitudeSearcher(PLAN)
    js.prune_sequentially(model, params, [X], searcher, boundaries=["up.*", "down.*"])


def compensate(params):
    result = js.MagnitudeSearcher(PLAN).search(PARAMS)
    js.compensate_low_rank(params, result, statistics(), rank=1)


def grow(params):
    result = js.shrink_params(PARAMS, model, (X,), sparsity=0.5)
    js.grow_back(result, params)


def report_calibration(params):
    result = js.MagnitudeSearcher(PLAN).search(PARAMS)
    js.calibration_report(params, result, statistics())


TREES = {
    "ADMMSearcher": search(js.ADMMSearcher),
    "MagnitudeSearcher": search(js.MagnitudeSearcher),
    "SparseGPTSearcher": search(js.SparseGPTSearcher),
    "WandaSearcher": search(js.WandaSearcher),
    "abstract_state": lambda p: js.abstract_state(TX, p),
    "accelerate": lambda p: js.accelerate(model, PLAN)(p, X),
    "add_sr_ste_decay": update(js.add_sr_ste_decay(PLAN)),
    "allocate": lambda p: js.allocate(PLAN, p, budget=0.9),
    "apply_adapters": lambda p: js.apply_adapters(
        p, js.create_adapters(PARAMS, PLAN, rank=2, key=KEY), MASKS
    ),
    "calibration_report": report_calibration,
    "channel_groups": lambda p: js.channel_groups(model, p, X),
    "collect_statistics": lambda p: js.collect_statistics(model, p, [X]),
    "compensate_low_rank": compensate,
    "compress_params": lambda p: js.compress_params(p, PLAN, quantize="int8"),
    "contraction_axes": lambda p: js.contraction_axes(model, p, X),
    "create_adapters": lambda p: js.create_adapters(p, PLAN, rank=2, key=KEY),
    "create_masks": js.create_masks,
    "dropped_activations": lambda p: js.dropped_activations(model, p, X),
    "fit_weights": lambda p: js.fit_weights(p, MASKS, statistics()),
    "flax_axes": js.flax_axes,
    "grow_back": grow,
    "init_mask_logits": lambda p: js.init_mask_logits(p, PLAN),
    "input_importances": lambda p: js.input_importances(p, statistics()),
    "keep_params_sparse": update(js.keep_params_sparse(PLAN)),
    "leaf_uses": lambda p: js.leaf_uses(model, p, X),
    "mask_params": lambda p: js.mask_params(p, MASKS),
    "metrics": lambda p: js.metrics(TX.init(PARAMS), p),
    "outlier_ratios": lambda p: js.outlier_ratios(p, PLAN, statistics()),
    "permute_channels": lambda p: js.permute_channels(p, PLAN, model, (X,)),
    "plan_sparsity": js.plan_sparsity,
    "prune_sequentially": prune_in_order,
    "random_scores": lambda p: js.random_scores(p, KEY),
    "refine_masks": lambda p: js.refine_masks(p, MASKS, statistics(), plan=PLAN),
    "regrow_at_random": update(regrown(js.regrow_at_random, key=KEY)),
    "regrow_by_gradient": update(regrown(js.regrow_by_gradient)),
    "ria_scores": lambda p: js.ria_scores(p, statistics()),
    "saliency_scores": lambda p: js.saliency_scores(p, PARAMS),
    "sharding_report": lambda p: js.sharding_report(p, PLAN),
    "shrink_params": lambda p: js.shrink_params(p, model, (X,), sparsity=0.5),
    "straight_through": lambda p: js.straight_through(p, PLAN),
    "wanda_scores": lambda p: js.wanda_scores(p, statistics()),
    "wrap_optimizer": update(TX),
}
MORE_TREES = {
    "init of add_sr_ste_decay": js.add_sr_ste_decay(PLAN).init,
    "init of keep_params_sparse": js.keep_params_sparse(PLAN).init,
    "init of regrow_at_random": regrown(js.regrow_at_random, key=KEY).init,
    "init of regrow_by_gradient": regrown(js.regrow_by_gradient).init,
    "init of wrap_optimizer": TX.init,
    "init with masks": js.wrap_optimizer(optax.sgd(0.1), masks=MASKS).init,
    "masks": lambda p: js.mask_params(PARAMS, p),
    "masks in a trace": lambda p: jax.eval_shape(js.mask_params, PARAMS, p),
    "params in a trace": lambda p: jax.eval_shape(js.create_masks, p),
    "plan with a trace": lambda p: js.plan_sparsity(p, "2:4", fn=model, args=(X,)),
    "scores": lambda p: js.create_masks(PARAMS, PLAN, scores=p),
    "shapes": lambda p: js.plan_sparsity(jax.eval_shape(lambda: p)),
}
ARRAYS = {
    "compress": js.compress,
    "create_asp_mask": js.create_asp_mask,
    "fill": js.fill,
    "from_semi_structured": lambda w: js.from_semi_structured(w, w.indices, axis=1),
    "m4n2_1d": js.m4n2_1d,
    "mn_1d_best": lambda w: js.mn_1d_best(w, 4, 2),
    "reap_scores": lambda w: js.reap_scores(w, jnp.ones((64, 32))),
    "reshape_1d": lambda w: js.reshape_1d(w, 4),
}
MORE_ARRAYS = {
    "as rows": lambda w: js.nm_matmul(w, w),
    "JAX": jnp.asarray,
    "JAX in a trace": lambda w: jax.eval_shape(jnp.asarray, w),
    "NumPy": np.asarray,
}


HALF = js.compress(KERNEL.astype(jnp.bfloat16))
#: What a tree of arrays of the same shapes would be refused for, too.
ALWAYS_REFUSED = ["grow_back", "masks", "masks in a trace"]


def saved(save, load, folder):
    """What is in a file of compressed weights."""
    save(folder / "model.safetensors", SMALL)
    return js.decompress_params(load(folder / "model.safetensors"))


def zeros(params):
    report = js.sparsity_report(params, PLAN)
    return {leaf.path: (leaf.sparsity, leaf.nonfinite) for leaf in report}


#: Functions of a folder, which return what a function makes of compressed weights, and
#: what is expected.
HANDLED = {
    "check_sparsity": lambda _: (js.check_sparsity(SMALL, PLAN), None),
    "decompress": lambda _: (js.decompress(WEIGHT), KERNEL),
    "decompress_params": lambda _: (js.decompress_params(SMALL), DENSE),
    "from_torch_layout": lambda _: (
        js.from_torch_layout(js.to_torch_layout(SMALL)),
        DENSE,
    ),
    "load_sparse": lambda folder: (
        saved(js.save_sparse, lambda f: js.load_sparse(f, like=SMALL), folder),
        DENSE,
    ),
    "nm_matmul": lambda _: (js.nm_matmul(X, WEIGHT), X @ KERNEL),
    "open_sparse": lambda folder: (
        saved(js.save_sparse, lambda f: js.open_sparse(f)["up/kernel"], folder),
        KERNEL,
    ),
    "open_torch": lambda folder: (
        saved(js.save_torch, lambda f: js.open_torch(f)["up/kernel"], folder),
        KERNEL,
    ),
    "quantize_compressed": lambda _: (js.quantize_compressed(HALF).shape, (64, 32)),
    "save_sparse": lambda folder: (
        saved(js.save_sparse, js.load_sparse, folder),
        DENSE,
    ),
    "save_torch": lambda folder: (
        saved(js.save_torch, lambda f: js.open_torch(f)["down/kernel"], folder),
        DENSE["down"]["kernel"],
    ),
    "sparse_apply": lambda _: (js.sparse_apply(model)(SMALL, X), model(DENSE, X)),
    "sparsity": lambda _: (js.sparsity(SMALL), 1280 / 2592),  # of 2048 + 512 and a bias
    "sparsity_report": lambda _: (zeros(SMALL), zeros(DENSE)),
    "to_semi_structured": lambda _: (
        js.from_semi_structured(*js.to_semi_structured(HALF)),
        KERNEL.astype(jnp.bfloat16),
    ),
    "to_torch_layout": lambda _: (js.to_torch_layout(SMALL), js.to_torch_layout(DENSE)),
}

#: Functions that take no weights: of masks, plans, logits, states, names of files.
NO_WEIGHTS = {
    *("compute_valid_1d_patterns", "cubic_schedule", "distillation_loss"),
    *(
        "distribute_by_erdos_renyi",
        "recalibrate_batch_stats",
        "feature_loss",
        "get_masks",
        "get_nmprune_info",
        "learned_masks",
    ),
    *("one_shot_schedule", "open_tensors"),
}


def test_every_public_function_is_in_one_table():
    functions = {
        name
        for name in PUBLIC
        if not inspect.isclass(getattr(js, name)) or name.endswith("Searcher")
    }
    tables = [TREES, ARRAYS, HANDLED, NO_WEIGHTS]
    assert sorted(name for table in tables for name in table) == sorted(
        functions - {"Searcher"}
    )


@pytest.mark.parametrize("name", [*TREES, *MORE_TREES])
def test_compressed_leaves_are_refused_with_the_remedy(name):
    call = (TREES | MORE_TREES)[name]
    with pytest.raises(ValueError, match="is compressed: give decompress") as error:
        call(SMALL)
    assert f"leaf 'down/kernel' of shape {(32, 16)}" in str(error.value)
    if name not in ALWAYS_REFUSED:
        call(js.decompress_params(SMALL))


@pytest.mark.usefixtures("without_annotations")
@pytest.mark.parametrize("name", [*ARRAYS, *MORE_ARRAYS])
def test_a_compressed_weight_is_no_array(name):
    message = r"a Compressed weight of shape \(64, 32\) is no array: give decompress"
    with pytest.raises(TypeError, match=message):
        (ARRAYS | MORE_ARRAYS)[name](WEIGHT)


@pytest.mark.parametrize("name", HANDLED)
def test_compressed_weights_stand_for_what_they_decompress_to(name, tmp_path):
    result, expected = HANDLED[name](tmp_path)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        js.decompress_params(result),
        expected,
    )


def test_a_compressed_leaf_of_another_partition_is_passed_over():
    emptied = jax.tree.map(lambda _: optax.MaskedNode(), WEIGHT)
    state = TX.init({"up": emptied, "down": PARAMS["down"]})
    assert [*js.get_masks(state)["down"]] == ["kernel"]
