"""flaxmodels: a ResNet in Linen, whose BatchNorm statistics are not parameters."""

import jax

import jaxsparse as js
from tests.libraries.journey import Model, library, travel


def test_flaxmodels(tmp_path):
    models = library("flaxmodels", "--no-deps flaxmodels h5py requests regex filelock")
    model = models.ResNet18(pretrained=None, output="logits", num_classes=16)
    keys = jax.random.split(jax.random.key(1), 3)
    images = [(jax.random.normal(key, (2, 32, 32, 3)),) for key in keys]
    variables = model.init(keys[0], images[0][0], train=False)

    def forward(params, images):
        variables_now = {**variables, "params": params}
        return model.apply(variables_now, images, train=False)

    axes = {r"BasicBlock_[0-3]/Conv_[012]/kernel": 2}  # the input channels
    rules = [js.Rule(r"BasicBlock_[4-7]/.*", None), js.Rule(".*", "2:4")]  # the small
    params = variables["params"]
    names = axes | {"Dense_0/kernel": 0}  # names cannot know that it is the head
    travel(Model(params, forward, images, axes, names, rules=rules), tmp_path)
