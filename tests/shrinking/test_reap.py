"""REAP's scores of experts, against a loop over tokens in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests.shrinking import networks as nets


def routed(tokens=50, experts=6, features=5, seed=0):
    """Gates of two experts a token, the last expert never, and their outputs."""
    rng = np.random.default_rng(seed)
    gates = np.zeros((tokens, experts), np.float32)
    for token in gates:
        token[rng.choice(experts - 1, 2, replace=False)] = rng.uniform(0.1, 1, 2)
    return gates, rng.normal(size=(tokens, experts, features)).astype(np.float32)


def by_hand(gates, outputs):
    scores = []
    for expert in range(gates.shape[1]):
        added = [
            float(gate[expert]) * np.sqrt((np.float64(output[expert]) ** 2).sum())
            for gate, output in zip(gates, outputs, strict=True)
            if gate[expert] != 0
        ]
        scores.append(sum(added) / len(added) if added else 0.0)
    return np.array(scores)


def test_the_mean_is_over_the_tokens_that_an_expert_is_sent():
    gates, outputs = routed()
    expected = by_hand(gates, outputs)
    assert expected[5] == 0
    scores = jax.jit(js.reap_scores)(gates, jnp.asarray(outputs))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    norms = jnp.linalg.norm(outputs, axis=-1)
    halves = jnp.concatenate([norms[:20], norms[20:]])
    np.testing.assert_allclose(js.reap_scores(gates, halves), expected, rtol=1e-5)
    # What an expert gives for tokens that it is not sent does not count.
    unsent = jnp.where(gates == 0, jnp.nan, norms)
    np.testing.assert_allclose(js.reap_scores(gates, unsent), expected, rtol=1e-5)


@pytest.mark.sweep
def test_stacked_layers_and_narrow_dtypes():
    layers = [routed(seed=i) for i in range(3)]
    gates, outputs = (jnp.stack(x) for x in zip(*layers, strict=True))
    scores = jax.vmap(js.reap_scores)(gates, outputs)
    expected = [by_hand(*layer) for layer in layers]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    with jax.numpy_dtype_promotion("strict"):
        narrow = js.reap_scores(gates[0], outputs[0].astype(jnp.bfloat16))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected[0], rtol=2e-2)


def test_the_experts_of_the_lowest_scores_go_with_their_column_of_the_router():
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in nets.EXPERTS.items()
    }
    x = jnp.ones((4, 12))
    gates, outputs = routed(seed=1)
    result = js.shrink_params(
        params,
        nets.experts,
        (x,),
        sizes={"router": 4},
        scores=lambda _: js.reap_scores(gates, outputs),
    )
    kept = np.sort(np.argsort(-by_hand(gates, outputs))[:4])
    expected = {"router": params["router"][:, kept]} | {
        name: params[name][kept] for name in ("gate", "up", "down")
    }
    jax.tree.map(np.testing.assert_array_equal, result.params, expected)


@pytest.mark.parametrize("shape", [(50, 5), (6, 50), (50,), (50, 6, 5, 2)])
def test_outputs_of_other_tokens_or_experts_are_refused(shape):
    with pytest.raises(ValueError, match=r"gates of shape \(50, 6\) need outputs of"):
        js.reap_scores(routed()[0], jnp.ones(shape))
