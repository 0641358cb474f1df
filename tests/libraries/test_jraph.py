"""Jraph and Haiku: a graph network; Haiku's weights are named `w`."""

import jax
import jax.numpy as jnp

from tests.libraries.journey import Model, library, travel


def test_jraph(tmp_path):
    jraph = library("jraph", "jraph dm-haiku")
    hk = library("haiku", "jraph dm-haiku")

    def network(graph):
        def mlp(*features):
            return hk.nets.MLP([64, 32])(jnp.concatenate(features, axis=-1))

        graph = jraph.GraphNetwork(
            update_edge_fn=jraph.concatenated_args(lambda x: mlp(x)),
            update_node_fn=jraph.concatenated_args(lambda x: mlp(x)),
            update_global_fn=jraph.concatenated_args(lambda x: mlp(x)),
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

    model = hk.without_apply_rng(hk.transform(network))
    graphs = [(graph(key),) for key in jax.random.split(jax.random.key(1), 2)]
    params = model.init(jax.random.key(0), *graphs[0])
    travel(
        Model(params, model.apply, graphs, {r"mlp(_[12])?/~/linear_[01]/w": 0}),
        tmp_path,
    )
