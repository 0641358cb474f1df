"""`permute_channels` on models of all libraries, with the groups from their trace."""

import jax
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._channels import permutation_search
from tests.channels import library_models, plain_models
from tests.channels.permuting import drawn


MODELS = {
    model.__name__: model
    for model in (
        plain_models.mixture_of_experts,
        library_models.encoder,
        library_models.equinox_tokens,
        library_models.nnx_decoder,
        library_models.nnx_stacked_decoder,
        library_models.resnet,
    )
}


def kept(params, plan):
    """The sum of the magnitudes that the best masks keep."""
    masks = js.create_masks(params, plan)
    sizes = jax.tree.map(
        lambda leaf, mask: mask is not None and np.abs(np.where(mask, leaf, 0)).sum(),
        params,
        masks,
    )
    return sum(jax.tree.leaves(sizes))


@pytest.mark.sweep(full=["equinox_tokens", "nnx_decoder", "nnx_stacked", "encoder"])
@pytest.mark.parametrize("name", MODELS)
def test_models_keep_more_and_their_statistics_move(name, monkeypatch):
    monkeypatch.setattr(permutation_search, "_ANNEALED_STEPS", 20)
    fn, params, args = MODELS[name]()
    params = drawn(params)
    rules = [js.Rule(".*", "1:2", sizes=None)]
    plan = js.plan_sparsity(params, rules, fn=fn, args=args, dense_head=False)
    result = js.permute_channels(params, plan, fn, args)
    gained = [x.after - x.before for x in result.gains.values() if not x.reason]
    assert min(gained) >= 0 < max(gained)
    # Outputs of other leaves are permuted too, which changes nothing there.
    assert kept(result.params, plan) > kept(params, plan)
    collect = lambda params: js.collect_statistics(fn, params, [args], plan=plan)
    moved, expected = result.permute(collect(params)), collect(result.params)
    for path, leaf in expected.items():
        scale = np.abs(leaf.moments).max()
        np.testing.assert_allclose(
            moved[path].moments, leaf.moments, atol=1e-4 * scale, err_msg=path
        )
