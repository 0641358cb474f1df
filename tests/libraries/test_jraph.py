"""Jraph and Haiku: a graph network; Haiku's weights are named `w`."""

import jax
import jax.numpy as jnp
import optax

from tests.libraries.journey import HEAD, NO_MATMUL, Model, library, travel


def test_jraph(tmp_path):
    jraph, hk = library("jraph"), library("haiku")

    def network(graph):
        def update(*features):
            return hk.nets.MLP([64, 32])(jnp.concatenate(features, axis=-1))

        graph = jraph.GraphNetwork(
            update_edge_fn=update, update_node_fn=update, update_global_fn=update
        )(graph)
        return hk.Linear(8, name="output")(graph.globals)

    def graph(key):
        keys = jax.random.split(key, 3)
        return jraph.GraphsTuple(
            nodes=jax.random.normal(keys[0], (10, 16)),
            edges=jax.random.normal(keys[1], (24, 16)),
            globals=jax.random.normal(keys[2], (2, 16)),
            senders=jnp.arange(24) * 3 % 10,
            receivers=jnp.arange(24) * 7 % 10,
            n_node=jnp.array([4, 6]),
            n_edge=jnp.array([10, 14]),
        )

    transformed = hk.without_apply_rng(hk.transform(network))
    graphs = [(graph(key),) for key in jax.random.split(jax.random.key(1), 2)]

    def loss(params, graph):
        return jnp.mean((transformed.apply(params, graph) - 1) ** 2)

    # One network of two layers for edges, one for nodes and one for graphs.
    model = Model(
        name="Jraph and Haiku",
        params=transformed.init(jax.random.key(0), *graphs[0]),
        forward=transformed.apply,
        loss=loss,
        batches=graphs,
        kernels=3 * 2,
        pruned={r"mlp(_[12])?/~/linear_[01]/w": 0},
        dense={"output/w": HEAD, ".*/b": NO_MATMUL},
        by_names={},  # `w` is no name of Flax
        optimizer=optax.adam(1e-3),  # as in Jraph's examples
    )
    travel(model, tmp_path)
