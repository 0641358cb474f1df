"""Helpers of the tests of the command line."""

import json
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jaxsparse as js
from jaxsparse.__main__ import main


class Done(tuple):
    """Exit code, stdout and stderr of a command."""

    code = property(lambda self: self[0])
    out = property(lambda self: self[1])
    err = property(lambda self: self[2])
    json = property(lambda self: json.loads(self[1]))


def command(*args):
    """Returns the arguments of a process that runs the command."""
    return [sys.executable, "-m", "jaxsparse", *map(str, args)]


def runner(capsys, monkeypatch):
    """Returns a function that runs commands in this process.

    With `columns`, stdout is a terminal of that width.
    """

    def run(*args, columns=None):
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
            monkeypatch.setenv("TERM", "dumb")  # without styles
        monkeypatch.setattr(sys.stdout, "isatty", lambda: columns is not None)
        monkeypatch.setattr(sys, "argv", ["jaxsparse", *map(str, args)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        return Done((code, *capsys.readouterr()))

    return run


def weights(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def torch_state():
    return {
        "model.embed_tokens.weight": weights((32, 64)),
        "model.layers.0.up.weight": weights((32, 64), 1, ml_dtypes.bfloat16),
        "model.layers.0.up.bias": weights((32,), 2),
        "model.layers.0.conv.weight": weights((8, 16, 3, 3), 3),
        "model.layers.0.wide.weight": weights((32, 64), 4, np.float64),
        "model.position_ids": np.arange(4),
        "lm_head.weight": weights((32, 64), 5),
    }


def flax_params():
    return {
        "up": {"kernel": jnp.asarray(weights((64, 32))), "bias": jnp.ones(32)},
        "layers": [jnp.asarray(weights((16,), 1, ml_dtypes.bfloat16))],
    }


def pruned(weight, n, m, axis):
    """Returns the weight pruned to `n` of each `m` by magnitude, in plain NumPy."""
    lines = np.moveaxis(np.abs(weight.astype(np.float64)), axis, -1)
    groups = lines.reshape(*lines.shape[:-1], -1, m)
    rank = np.argsort(np.argsort(-groups, -1, kind="stable"), -1, kind="stable")
    kept = np.moveaxis((rank < n).reshape(lines.shape), -1, axis)
    return np.where(kept, weight, np.zeros((), weight.dtype))


def write_matrices(path, count, rows, columns):
    """Writes `count` bfloat16 matrices to a file, with one in memory at a time."""
    size = rows * columns * 2
    header = {
        f"layers.{i}.up_proj.weight": {
            "dtype": "BF16",
            "shape": [rows, columns],
            "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(count)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    upper_halves = values.view(np.uint16)[:, 1::2]
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for i in range(count):
            file.write(np.roll(upper_halves, i, axis=0).tobytes())


def kill_prune(model, output, after, how=signal.SIGKILL, wait=0.0):
    """Kills a `prune` after so many lines of progress and `wait` seconds."""
    process = subprocess.Popen(
        command("prune", model, "-o", output, "--force", "--verbose"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for _ in range(after):
        process.stderr.readline()
    time.sleep(wait)
    process.send_signal(how)
    process.communicate()
    return process.returncode


def assert_complete(model, output):
    """Checks that OUT equals, bit for bit, what the library prunes."""
    before, after = js.open_tensors(model), js.open_tensors(output)
    plan = js.plan_sparsity(dict(before.specs), layout="torch")
    for name in before:
        leaf = {name: before[name]}
        one = js.Plan((plan[name],))
        expected = js.mask_params(leaf, js.create_masks(leaf, one))[name]
        assert np.array_equal(
            np.asarray(after[name]).view(np.uint16),
            np.asarray(expected).view(np.uint16),
        )
