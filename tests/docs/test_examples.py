"""Every example runs, as a user would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import xla_flags


EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name, folder):
    """Runs an example for seconds, in a folder of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", "--smoke"],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg", "XLA_FLAGS": xla_flags.QUICK},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.sweep(whole=True, full=["recipes"])
@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("finetune_linen", ["2:4, one-shot", "1:8, fine-tuned", "dense, trained as"]),
        ("finetune_nnx", ["2:4, one-shot", "2:4, fine-tuned", "dense, trained as"]),
        ("equinox_mlp", ["2:4, one-shot", "2:4, fine-tuned"]),
        ("prune_language_model", ["Wanda, in order", "SparseGPT", "and 10 steps"]),
        ("permute_language_model", ["as they were", "SparseGPT, in order"]),
        ("recover_language_model", ["2:4, SparseGPT", "and 12 steps"]),
        (
            "learn_masks",
            [
                "Wanda's mask",
                "SparseGPT's mask",
                "learned, 20 steps",
                "another pattern",
            ],
        ),
        ("prune_encoder", ["2:4, SparseGPT, in order", "2:4, ADMM", "second moments"]),
        ("prune_resnet", ["2:4, Magnitude", "2:4, SparseGPT", "renewed"]),
        ("decode_compressed", ["compressed 72,576", "tokens are the same"]),
        ("quantize_language_model", ["dense, int8  ", "2:4, int8 and activations"]),
        ("pretrain_decoder", ["to dense", "2:4  ", "2:4, then dense", "tokens/s"]),
        ("recipes", ["SR-STE, 2:4", "RigL, 90 %", "transposable 2:4", "minus dense"]),
    ],
)
def test_the_example_prints_its_plan_and_its_table(name, stages, tmp_path):
    run = run_example(name, tmp_path)
    assert run.returncode == 0, run.stderr
    assert re.search(r"2:4 (along axis|transposable along axes) \d", run.stdout)
    # Half of the feed-forward layers' 12,288 weights of 28,832 is 21.3, and it shrinks
    # some kept ones to zero; others prune more.
    share = r"2[1-9]\." if name == "pretrain_decoder" else r"[34]\d"
    assert re.search(f"sparsity of all weights: {share}", run.stdout)
    assert [stage for stage in stages if stage not in run.stdout] == []
    pictures = {"finetune_linen": "out/finetune_linen.png", "recipes": "recipes.png"}
    if name in pictures:
        assert (tmp_path / pictures[name]).stat().st_size > 1000


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "shrink_language_model",
            ["energy, refitted", "64x32   32x32   inputs", "grown back", "time "],
        ),
        ("shrink_images", ["features: (16, 32, 64) -> (8, 16, 32)", "one epoch"]),
    ],
)
def test_the_example_prints_its_sizes_and_its_table(name, lines, tmp_path):
    run = run_example(name, tmp_path)
    assert run.returncode == 0, run.stderr
    assert [line for line in lines if line not in run.stdout] == []


def test_no_example_is_longer_than_150_lines():
    lengths = {
        path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")
    }
    assert {name: n for name, n in lengths.items() if n > 150} == {}
