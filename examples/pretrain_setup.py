"""The sizes, the text, the command line and the table of `pretrain_decoder.py`."""

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from decoder import Config
from real_data import load_bible, load_text


LOOKS = 24  # calls of a compiled program of several steps
OPEN = 16  # of them before masks open: two thirds


class Recipes(NamedTuple):
    """Something of each recipe: dense, sparse to the end, and dense at the end."""

    dense: Any
    sparse: Any
    opened: Any


class Setting(NamedTuple):
    """A decoder over bytes, and how it is trained."""

    config: Config
    dtype: jnp.dtype  # in which the blocks compute
    batch: int
    length: int
    steps: int
    rate: float
    decay: float  # of pruned weights, as a part of their gradients
    every: int  # steps from one search for masks to the next


def _config(width, layers, heads, hidden, attention="xla"):
    return Config(
        vocab=256,
        width=width,
        layers=layers,
        query_heads=heads,
        kv_heads=heads,
        hidden=hidden,
        rope_base=1e4,
        epsilon=1e-5,
        attention=attention,
    )


SETTINGS = {
    "smoke": Setting(_config(32, 2, 4, 64), jnp.float32, 4, 32, 48, 3e-3, 2e-3, 2),
    "cpu": Setting(_config(128, 2, 4, 384), jnp.float32, 16, 64, 1800, 3e-3, 2e-3, 10),
    "full": Setting(
        _config(4096, 2, 32, 14336, "cudnn"),
        jnp.bfloat16,
        32,
        1024,
        1200,
        3e-4,
        2e-3,
        20,
    ),
}


def arguments(doc):
    """The setting, with what the command line changes, and the seeds."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pattern", default="2:4 transposable")
    parser.add_argument(
        "--layers", default=".*mlp.*", help="of the paths that it prunes"
    )
    for name in ("batch", "steps", "every"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("rate", "decay"):
        parser.add_argument(f"--{name}", type=float)
    args = parser.parse_args()
    setting = SETTINGS["full" if args.full else "smoke" if args.smoke else "cpu"]
    given = {k: v for k, v in vars(args).items() if k in Setting._fields and v}
    setting = setting._replace(**given)
    return setting._replace(steps=-(-setting.steps // LOOKS) * LOOKS), args


def load_pieces(setting, full):
    """Bytes to train on, and held-out pieces `(count, batch, length + 1)`."""
    train, held_out = load_text()
    if full:
        bible = np.frombuffer("\n".join(load_bible()).encode(), np.uint8)
        end = len(bible) * 9 // 10
        train, held_out = (
            np.concatenate(parts)
            for parts in ((train, bible[:end]), (held_out, bible[end:]))
        )
    size = setting.batch * (setting.length + 1)
    pieces = held_out[: len(held_out) // size * size]
    pieces = pieces.reshape(-1, setting.batch, setting.length + 1)
    return jnp.asarray(train), jnp.asarray(pieces, jnp.int32)


def print_table(setting, bits, seconds):
    """Bits per byte of each recipe, by seed, and how many tokens a second."""
    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"\n{device}, {setting.steps} steps")
    print(f"{'held-out text':16} bits per byte  to dense   tokens/s  by seed")
    dense, sparse = (np.median([run[i] for run in seconds]) for i in (0, 1))
    times = dense, sparse, (sparse * OPEN + dense * (LOOKS - OPEN)) / LOOKS
    tokens = setting.steps // LOOKS * setting.batch * setting.length
    names = "dense", "2:4", "2:4, then dense"
    for name, values, time in zip(names, zip(*bits, strict=True), times, strict=True):
        more = np.mean(values) / np.mean([run.dense for run in bits]) - 1
        by_seed = " ".join(f"{x:.3f}" for x in values)
        figures = f"{np.mean(values):13.3f}  {more:+8.2%}  {tokens / time:9,.0f}"
        print(f"{name:16} {figures}  {by_seed}")
