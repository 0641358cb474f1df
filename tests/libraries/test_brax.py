"""Brax: policy and value networks in Linen under the loss of PPO."""

import jax
import jax.numpy as jnp

from tests.libraries.journey import Model, library, travel


INSTALL = "--no-deps brax mujoco mujoco-mjx trimesh jaxopt ml_collections tensorboardX"
STEPS, BATCH, OBSERVATION, ACTION = 6, 4, 32, 8


def test_brax(tmp_path):
    library("brax.training.agents.ppo.losses", INSTALL)
    from brax.training.agents.ppo import losses, networks
    from brax.training.types import Transition

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

    def transitions(key):
        keys = jax.random.split(key, 5)
        shape = (BATCH, STEPS)
        actions = jax.random.normal(keys[0], (*shape, ACTION))
        return Transition(
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

    batches = [(transitions(key),) for key in jax.random.split(keys[2], 3)]
    hidden = {r"policy/params/hidden_[01]/kernel": 0, "value/params/hidden_0/kernel": 0}
    # Names cannot know that `hidden_2` is the policy's output.
    names = {r"policy/params/hidden_[012]/kernel": 0, "value/params/hidden_0/kernel": 0}
    travel(Model(params, forward, batches, hidden, names, loss=loss), tmp_path)
