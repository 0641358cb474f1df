"""What is called free leaves the function as it is; what is fixed does not."""

import jax
import pytest

from jaxsparse._channels import channel_groups
from tests.channels import library_models, plain_models
from tests.channels.permuting import difference, drawn, permuted


MODELS = {
    model.__name__: model
    for model in (
        plain_models.branches,
        plain_models.class_token,
        plain_models.decoder,
        plain_models.decoder_of_pairs,
        plain_models.ensemble,
        plain_models.flattened_nchw,
        plain_models.fused_gate_up,
        plain_models.fused_qkv_by_head,
        plain_models.fused_qkv_reshape,
        plain_models.fused_qkv_split,
        plain_models.grouped_convolutions,
        plain_models.looked_up_experts,
        plain_models.loop_that_ends_by_a_channel,
        plain_models.mixture_of_experts,
        plain_models.mlp,
        plain_models.mlp_mixer,
        plain_models.nothing_but_a_total,
        plain_models.stacked_layers,
        plain_models.tied_autoencoder,
        plain_models.u_net,
        plain_models.unrolled_layers,
        plain_models.weight_norm,
        plain_models.while_loop,
        library_models.encoder,
        library_models.equinox_images,
        library_models.equinox_tokens,
        library_models.fused_lstm,
        library_models.group_norm,
        library_models.lstm_and_gru,
        library_models.mobilenet,
        library_models.nnx_decoder,
        library_models.nnx_stacked_decoder,
        library_models.resnet,
        library_models.vision_transformer,
    )
}

#: Groups that are fixed although any order of them gives the same function.
TOO_CAREFUL = {
    "nothing_but_a_total": [(11, "`cumsum`")],
}

QUICK = ["[decoder]", "[mixture_of_experts]", "[resnet]", "total]"]


@pytest.mark.sweep(keep=QUICK)
@pytest.mark.parametrize("name", MODELS)
def test_free_groups_can_be_permuted_and_no_other(name):
    fn, params, args = MODELS[name]()
    params = drawn(params)
    groups = channel_groups(fn, params, *args)
    free = [group for group in groups if not group.fixed]
    fixed = [group for group in groups if group.fixed]
    run = jax.jit(fn)
    assert difference(run, params, permuted(params, free), args) < 1e-5
    careful = [
        group
        for group in fixed
        if difference(run, params, permuted(params, [group]), args) < 1e-5
    ]
    found = [(group.size, group.fixed) for group in careful]
    assert found == TOO_CAREFUL.get(name, [])


def test_few_of_the_fixed_groups_could_be_free():
    """Of all groups of all models at most a fifth, so that the table stays honest."""
    careful = sum(map(len, TOO_CAREFUL.values()))
    assert careful <= len(MODELS) // 5
