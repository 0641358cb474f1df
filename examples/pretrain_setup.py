"""The sizes, the text, the command line and the table of `pretrain_decoder.py`."""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from decoder import Config
from real_data import load_bible, load_text


LOOKS = 24  # compiled programs of equally many steps, one after the other


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
    "smoke": Setting(_config(32, 2, 4, 64), jnp.float32, 4, 32, 48, 3e-3, 2e-4, 2),
    "cpu": Setting(_config(128, 4, 4, 384), jnp.float32, 32, 64, 960, 3e-3, 2e-4, 10),
    "full": Setting(
        _config(2048, 8, 16, 5632, "cudnn"),
        jnp.bfloat16,
        16,
        1024,
        1200,
        4e-4,
        2e-4,
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


def print_table(results):
    """Bits per byte of each recipe, by seed, and how many tokens a second."""
    print(f"\n{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{'bits per byte':28}    mean  to dense   tokens/s  by seed")
    (first, *_) = results.values()
    for name, runs in results.items():
        mean = np.mean([run.bits for run in runs])
        more = 100 * (mean / np.mean([run.bits for run in first]) - 1)
        speed = np.median([run.tokens_per_second for run in runs])
        seeds = " ".join(f"{run.bits:.3f}" for run in runs)
        print(f"{name:28}  {mean:6.3f}  {more:+6.2f} %  {speed:9,.0f}  {seeds}")
