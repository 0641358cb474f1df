"""Smoke test of an installed wheel: `python tests/long/installed_wheel.py`.

It must be run by the Python of an environment that has the wheel and not the checkout,
with the extras `cli` and `flax`. Anything missing in the wheel raises.
"""

import importlib
import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file, save_file

import jaxsparse as js


def check_files() -> None:
    """The types' marker, the sources of the kernel and the licence came along."""
    package = Path(js.__file__).parent
    assert "site-packages" in package.parts, f"{package} is not an installed package"
    for name in ("py.typed", "cli/demo.txt", "kernels/nm_matmul.cu"):
        assert (package / name).stat().st_size or name == "py.typed", name
    installed = importlib.metadata.files("jaxsparse") or []
    assert any(file.name == "LICENSE" for file in installed)
    assert importlib.metadata.version("jaxsparse") == js.__version__


def check_modules() -> None:
    """Every public module can be imported."""
    for name in ("io", "magnitude", "plots", "report", "kernels.cuda_library"):
        importlib.import_module(f"jaxsparse.{name}")


def check_training() -> None:
    """A Flax network is pruned 2:4, takes a step and stays so."""
    model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)])
    x = jnp.ones((4, 16))
    params = model.init(jax.random.key(0), x)
    plan = js.plan_sparsity(params, "2:4", fn=model.apply, args=(x,))
    tx = js.wrap_optimizer(optax.adam(0.1), plan)
    params = js.mask_params(params, js.create_masks(params, plan))
    state = tx.init(params)
    grads = jax.grad(lambda params: model.apply(params, x).sum())(params)
    updates, state = tx.update(grads, state, params)
    kernel = optax.apply_updates(params, updates)["params"]["layers_0"]["kernel"]
    kept = np.count_nonzero(np.reshape(np.asarray(kernel).T, (-1, 4)), axis=1)
    assert (kept == 2).all(), kept


def check_command() -> None:
    """The installed command prunes a file."""
    command = str(Path(sys.executable).with_name("jaxsparse"))
    with tempfile.TemporaryDirectory() as folder:
        model, pruned = f"{folder}/model.safetensors", f"{folder}/pruned.safetensors"
        weight = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
        save_file({"layer.weight": weight}, model, metadata={"format": "pt"})
        for arguments in (["--version"], ["prune", model, "-o", pruned]):
            subprocess.run([command, *arguments], check=True, cwd=folder)
        assert np.count_nonzero(load_file(pruned)["layer.weight"]) == weight.size / 2


if __name__ == "__main__":
    check_files()
    check_modules()
    check_training()
    check_command()
    print(f"jaxsparse {js.__version__} is whole")
