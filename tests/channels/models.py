"""All models whose channel groups are tested, by name."""

from tests.channels import image_models, library_models, plain_models


MODELS = {
    model.__name__: model
    for model in (
        plain_models.branches,
        image_models.class_token,
        plain_models.decoder,
        plain_models.decoder_of_pairs,
        plain_models.ensemble,
        image_models.flattened_nchw,
        plain_models.fused_gate_up,
        plain_models.fused_qkv_by_head,
        plain_models.fused_qkv_reshape,
        plain_models.fused_qkv_split,
        image_models.grouped_convolutions,
        plain_models.looked_up_experts,
        plain_models.loop_that_ends_by_a_channel,
        plain_models.mixture_of_experts,
        plain_models.mlp,
        image_models.mlp_mixer,
        plain_models.nothing_but_a_total,
        plain_models.stacked_layers,
        plain_models.tied_autoencoder,
        image_models.u_net,
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
