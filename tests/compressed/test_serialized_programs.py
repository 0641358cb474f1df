"""Programs that `jax.export` writes for another process take compressed weights."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export

import jaxsparse as js
from tests import reference


X = np.arange(32, dtype=np.float32).reshape(2, 16)
W = np.random.default_rng(0).integers(1, 99, (16, 32)).astype(np.float32)


def serialized(small):
    run = js.sparse_apply(lambda w, x: x @ w)
    program = jax.jit(lambda small, x: (run(small, x), small))
    return export.export(program)(small, X).serialize()


@pytest.mark.sweep
@pytest.mark.parametrize("pattern", [(1, 8), (2, 4), (4, 8)])
def test_compressed_weights_go_in_and_come_out(pattern):
    small = js.compress(W, js.NM(*pattern), axis=0)
    program = export.deserialize(serialized(small))
    y, returned = program.call(small, X)
    kept = np.where(reference.top_n_mask(W, *pattern, 0), W, 0)
    np.testing.assert_array_equal(y, X @ kept)
    assert jax.tree.structure(returned) == jax.tree.structure(small)


def test_the_static_fields_come_back():
    pattern = js.NM(2, 4, transposable=True)
    small = js.compress(W, pattern, mask=np.tile(np.eye(16, dtype=bool), 2), axis=-1)
    program = export.deserialize(serialized(small))
    expected = jax.tree.structure(((small, X), {}))
    assert program.in_tree == expected


@pytest.mark.sweep
def test_another_process_runs_it_without_the_models_code(tmp_path):
    small = js.compress(W, "2:4", axis=0)
    (tmp_path / "program").write_bytes(serialized(small))
    js.save_sparse(tmp_path / "w.safetensors", {"w": small})
    code = (
        "import jax, jaxsparse as js, numpy as np\n"
        "small = js.load_sparse('w.safetensors')['w']\n"
        "program = jax.export.deserialize(bytearray(open('program', 'rb').read()))\n"
        "x = np.arange(32, dtype=np.float32).reshape(2, 16)\n"
        "np.save('y.npy', program.call(small, x)[0])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    kept = np.where(reference.top_n_mask(W, 2, 4, 0), W, 0)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), X @ kept)
