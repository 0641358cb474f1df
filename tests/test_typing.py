"""What type checkers say about the ten lines that a user writes, and about a slip."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
RIGHT = """\
import jax
import jaxsparse as js
import optax

params = {
    "mlp": {"kernel": jax.random.normal(jax.random.key(0), (32, 16))},
    "lm_head": {"kernel": jax.random.normal(jax.random.key(1), (16, 8))},
}
batch = jax.random.normal(jax.random.key(2), (4, 32))


def loss(params: dict[str, dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    return (x @ params["mlp"]["kernel"] @ params["lm_head"]["kernel"]).mean()


rules = [js.Rule(".*lm_head.*", None), js.Rule(".*mlp.*", "1:4"), js.Rule(".*", "2:4")]
plan = js.plan_sparsity(params, rules, fn=loss, args=(batch,))
print(plan)
masks = js.create_masks(params, plan)
params = js.mask_params(params, masks)
tx = js.wrap_optimizer(optax.adamw(1e-3), plan)
state = tx.init(params)
masks = js.get_masks(state)
js.check_sparsity(params, plan)
print({"sparsity": float(js.sparsity(params))})
"""
WRONG = RIGHT.replace("fn=loss", "fun=loss")


def start_mypy(folder, options):
    # Optax has no types of its own; the installed jaxsparse is not itself checked.
    always = ("--follow-imports=silent", "--cache-dir", folder / "cache", "--no-pretty")
    (folder / "mypy.ini").write_text("[mypy-optax]\nignore_missing_imports = True\n")
    return subprocess.Popen(
        [sys.executable, "-m", "mypy", *always, *options, "right.py", "wrong.py"],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def start_pyright(folder, mode):
    config = {
        "extraPaths": [str(ROOT)],
        "reportMissingTypeStubs": False,  # those of Optax
        "typeCheckingMode": mode,
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    return subprocess.Popen(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("start", "modes"),
    [(start_mypy, [(), ("--strict",)]), (start_pyright, ["basic", "strict"])],
    ids=["mypy", "pyright"],
)
def test_the_ten_lines_pass_and_a_misspelled_keyword_is_named(start, modes, tmp_path):
    running = []
    for i, mode in enumerate(modes):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "right.py").write_text(RIGHT)
        (folder / "wrong.py").write_text(WRONG)
        running.append(start(folder, mode))
    for process in running:
        output, _ = process.communicate()
        errors = re.findall(r"^.*: error: .*$|^.* - error: .*$", output, re.MULTILINE)
        assert process.returncode == 1, output
        assert [error for error in errors if "wrong.py" not in error] == []
        assert [error for error in errors if '"fun"' in error] != [], output
