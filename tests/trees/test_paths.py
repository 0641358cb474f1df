"""What leaves are called in the containers of JAX and its libraries."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.tree_util import (
    register_dataclass,
    register_pytree_node_class,
    register_pytree_with_keys_class,
)

import jaxsparse as js


class Pair(NamedTuple):
    first: Any
    second: Any


@register_dataclass
@dataclass
class Data:
    first: Any
    second: Any


@flax.struct.dataclass
class Struct:
    first: Any
    second: Any


class Module(eqx.Module):
    first: Any
    second: Any


class Node:
    """A class without keys: JAX numbers its children."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def tree_flatten(self):
        return (self.first, self.second), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@register_pytree_node_class
class Unnamed(Node):
    pass


@register_pytree_with_keys_class
class Named(Node):
    def tree_flatten_with_keys(self):
        return ((("first", self.first), ("second", self.second)), None)


NAMES, NUMBERS = ("first", "second"), ("0", "1")
NODES = [
    (lambda a, b: {"first": a, "second": b}, NAMES),
    (Pair, NAMES),
    (Data, NAMES),
    (Struct, NAMES),
    (Module, NAMES),
    (Named, NAMES),
    (Unnamed, NUMBERS),
    (lambda a, b: [a, b], NUMBERS),
    (lambda a, b: (a, b), NUMBERS),
]
WEIGHTS = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
RULES = [js.Rule(".*(first|0)/.*", None), js.Rule(".*", "2:4", axis=0)]


@pytest.mark.parametrize(("node", "names"), NODES)
def test_paths_are_the_names_that_jax_has(node, names):
    params = [node({"w": WEIGHTS[0]}, {"w": WEIGHTS[1]})]
    expected = [f"0/{name}/w" for name in names]
    rules = [js.Rule(expected[0], None), js.Rule(expected[1], "2:4", axis=0)]
    plan = js.plan_sparsity(params, rules)
    assert [leaf.path for leaf in plan.leaves] == expected
    # The trees of masks, of a traced function and of an optimizer have the same paths.
    masks = js.create_masks(params, plan)
    assert jax.tree.leaves(masks)[0].shape == (16, 16)
    tx = js.wrap_optimizer(optax.sgd(0.1), masks=masks)
    state = jax.jit(tx.init)(params)
    pruned = [
        js.mask_params(params, masks),
        jax.jit(js.mask_params)(params, js.get_masks(state)),
        jax.jit(lambda x: js.mask_params(x, js.create_masks(x, plan)))(params),
    ]
    for tree in pruned:
        js.check_sparsity(tree, plan)
        first, second = jax.tree.leaves(tree)
        np.testing.assert_array_equal(first, WEIGHTS[0])
        assert (np.asarray(second) == 0).sum() == 128


@register_dataclass
@dataclass
class Labelled:
    """A parameter with a name that is no key, as Penzai's `ParameterValue`."""

    array: Any
    label: str = field(metadata={"static": True})


def forward(params, tokens):
    by_label = {param.label: param.array for param in params}
    x = by_label["embedder.embeddings"][tokens]
    x = jnp.tanh(x @ by_label["block_0/mlp.weights"])
    return x @ by_label["lm_head.weights"]


LABELS = ["embedder.embeddings", "block_0/mlp.weights", "lm_head.weights"]
PARAMS = tuple(
    Labelled(x, label)
    for label, x in zip(LABELS, [*WEIGHTS, WEIGHTS[1].T.copy()], strict=True)
)
TOKENS = jnp.arange(8)


@pytest.mark.sweep
def test_labels_as_the_keys_of_a_dict_are_names(tmp_path):
    numbered = js.plan_sparsity(PARAMS, fn=forward, args=(TOKENS,))
    assert [leaf.path for leaf in numbered.leaves] == ["0/array", "1/array", "2/array"]

    params = {param.label: param for param in PARAMS}
    fn = lambda params, tokens: forward(params.values(), tokens)
    rules = [js.Rule("lm_head.*", "1:4"), js.Rule("(block|embed).*", "2:4")]
    plan = js.plan_sparsity(params, rules, fn=fn, args=(TOKENS,), dense_head=False)
    assert {leaf.path: leaf.decision for leaf in plan.leaves} == {
        "block_0/mlp.weights/array": "2:4 along axis 0",
        "embedder.embeddings/array": "dense: gathered",
        "lm_head.weights/array": "1:4 along axis 0",
    }
    state = jax.jit(js.wrap_optimizer(optax.adam(0.1), plan).init)(params)
    pruned = js.mask_params(params, js.get_masks(state))
    assert jax.jit(fn)(pruned, TOKENS).shape == (8, 16)
    # A checkpoint read without a template has dicts in place of the dataclasses.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", js.get_masks(state))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state")
    again = js.mask_params(params, restored)
    for name, param in pruned.items():
        np.testing.assert_array_equal(again[name].array, param.array)
    js.check_sparsity(again, plan)


@register_dataclass
@dataclass
class Attention:
    key: Any
    value: Any


@register_dataclass
@dataclass
class Box:
    value: Any


ATTENTION = {"attn": Attention(*WEIGHTS), "boxed": Box(WEIGHTS[0])}


def test_a_value_is_a_name_unless_it_is_all_that_a_box_holds(tmp_path):
    rules = [
        js.Rule("attn/(key|value)", "2:4", axis=0),
        js.Rule("boxed", "1:4", axis=0),
    ]
    plan = js.plan_sparsity(ATTENTION, rules)
    assert [leaf.path for leaf in plan.leaves] == ["attn/key", "attn/value", "boxed"]
    pruned = js.mask_params(ATTENTION, js.create_masks(ATTENTION, plan))
    js.save_sparse(tmp_path / "model.safetensors", pruned)
    restored = js.load_sparse(tmp_path / "model.safetensors")
    assert set(restored["attn"]) == {"key", "value"}
    js.check_sparsity(restored, plan)


def test_a_value_has_the_same_name_where_the_rest_is_dense_or_removed():
    plan = js.plan_sparsity(ATTENTION, [js.Rule("attn/value", "2:4", axis=0)])
    masks = js.create_masks(ATTENTION, plan)
    assert masks["attn"].key is None
    js.check_sparsity(js.mask_params(ATTENTION, masks), plan)
    is_pruned = {"attn": Attention(False, True), "boxed": False}
    for tx in (
        js.wrap_optimizer(optax.adam(0.1), plan),
        js.wrap_optimizer(optax.adam(0.1), masks=masks),
        optax.masked(js.wrap_optimizer(optax.adam(0.1), plan), is_pruned),
    ):
        state = jax.jit(tx.init)(ATTENTION)
        updates, state = jax.jit(tx.update)(ATTENTION, state, ATTENTION)
        stepped = optax.apply_updates(ATTENTION, updates)
        js.check_sparsity(stepped, plan)
        js.check_sparsity(js.mask_params(stepped, js.get_masks(state)), plan)
