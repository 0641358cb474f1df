"""Brax: the policy and value networks of PPO, in Linen."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse as js
from tests.libraries.journey import HEAD, NO_MATMUL, Model, library, travel


STEPS, BATCH, OBSERVATION, ACTION = 6, 4, 32, 8


def test_brax(tmp_path):
    losses = library("brax.training.agents.ppo.losses")
    networks = library("brax.training.agents.ppo.networks")

    # Three Dense layers in the policy and two in the value network; the last of each is
    # its head: the mean and scale of 8 actions, and one value.
    ppo = networks.make_ppo_networks(
        OBSERVATION,
        ACTION,
        policy_hidden_layer_sizes=(32, 32),
        value_hidden_layer_sizes=(64,),
    )
    keys = jax.random.split(jax.random.key(0), 4)
    params = losses.PPONetworkParams(
        policy=ppo.policy_network.init(keys[0]), value=ppo.value_network.init(keys[1])
    )

    def forward(params, data):
        observation = data.observation
        policy = ppo.policy_network.apply(None, params.policy, observation)
        return policy, ppo.value_network.apply(None, params.value, observation)

    def loss(params, data):
        return losses.compute_ppo_loss(params, None, data, keys[3], ppo)[0]

    hidden = {r"policy/params/hidden_[01]/kernel": 0, "value/params/hidden_0/kernel": 0}
    model = Model(
        name="Brax",
        params=params,
        forward=forward,
        loss=loss,
        batches=[(_transitions(key),) for key in jax.random.split(keys[2], 3)],
        kernels=3,
        pruned=hidden,
        dense={
            "policy/params/hidden_2/kernel": HEAD,
            "value/params/hidden_1/kernel": HEAD,
            ".*/bias": NO_MATMUL,
        },
        # Names cannot know that the policy ends with `hidden_2`; the value network ends
        # with one output, which the size rule excludes.
        by_names=hidden | {"policy/params/hidden_2/kernel": 0},
        # As `ppo.train` with `max_grad_norm`.
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    )
    travel(model, tmp_path)


def test_the_update_of_brax_hands_over_no_parameters():
    gradients = library("brax.training.gradients")
    params = {"kernel": jnp.ones((32, 32))}
    tx = js.wrap_optimizer(optax.adam(1e-3), [js.Rule(".*", "2:4")])
    update = gradients.gradient_update_fn(
        lambda params: jnp.sum(params["kernel"] ** 2), tx, pmap_axis_name=None
    )
    with pytest.raises(ValueError, match=r"call tx.update\(updates, state, params\)"):
        update(params, optimizer_state=tx.init(params))


def _transitions(key):
    """Unrolls of an environment, as `compute_ppo_loss` expects them."""
    types = library("brax.training.types")
    keys = jax.random.split(key, 5)
    shape = (BATCH, STEPS)
    actions = jax.random.normal(keys[0], (*shape, ACTION))
    return types.Transition(
        observation=jax.random.normal(keys[1], (*shape, OBSERVATION)),
        action=jnp.tanh(actions),
        reward=jax.random.normal(keys[2], shape),
        discount=jnp.ones(shape),
        next_observation=jax.random.normal(keys[3], (*shape, OBSERVATION)),
        extras={
            "policy_extras": {
                "raw_action": actions,
                "log_prob": jax.random.normal(keys[4], shape),
                "distribution_params": jnp.ones((*shape, 2 * ACTION)),
            },
            "state_extras": {"truncation": jnp.zeros(shape)},
        },
    )
