"""Linear algebra on a CPU: no call that waits for threads another call may occupy."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._calibration.admm_searcher import _prune as _admm
from jaxsparse._calibration.fit_weights import _fit
from jaxsparse._calibration.least_squares import masked_least_squares
from jaxsparse._calibration.map_solves import map_solves
from jaxsparse._calibration.sparsegpt_searcher import _prune


#: More outputs than are solved at once elsewhere, so that a batch is left over.
_FIT = """
import jax, jax.numpy as jnp, jaxsparse as js
kernels = jax.random.normal(jax.random.key(0), (2, 576, 304))
params = {"a": {"kernel": kernels[0]}, "b": {"kernel": kernels[1]}}
x = jax.random.normal(jax.random.key(1), (2400, 576))
fn = lambda params, x: x @ params["a"]["kernel"] + x @ params["b"]["kernel"]
statistics = js.collect_statistics(fn, params, [x])
js.fit_weights(params, js.create_masks(params), statistics)
js.SparseGPTSearcher(update_weights="optimal").search(params, statistics)
print("returned")
"""


@pytest.mark.sweep(full=["test_fits_of_many"])
def test_fits_of_many_outputs_return():
    # LAPACK's own threads are not what is tested, and are slow on a busy machine.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", _FIT],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    assert run.stdout == "returned\n", run.stderr


@pytest.mark.sweep
def test_no_call_of_lapack_is_batched_on_a_cpu():
    params = {"experts": jax.random.normal(jax.random.key(0), (3, 16, 24))}
    fn = lambda params, x: jnp.einsum("etd,edf->etf", x, params["experts"])
    x = jax.random.normal(jax.random.key(1), (3, 64, 16))
    rules = [js.Rule(".*", "2:4", axis=1)]
    plan = js.plan_sparsity(params, rules, fn=fn, args=(x,))
    (statistics,) = js.collect_statistics(fn, params, [x], plan=plan).values()
    leaf, pattern = params["experts"], plan["experts"].pattern
    masks = js.create_masks(params, plan)
    programs = [
        _fit.lower(leaf, masks["experts"], statistics, 0.1),
        _prune.lower(leaf, statistics, pattern, 0, 0.01, 0.1, "optimal", 2),
        _admm.lower(leaf, statistics, pattern, 2, 6, 0.1, 2),
    ]
    for program in programs:
        calls = re.findall(
            r"custom_call @(?:lapack|blas)_\w+\(.*\) -> \(?(.*)$",
            program.as_text(),
            re.MULTILINE,
        )
        assert calls
        for result in calls:
            (shape, *_) = re.findall(r"tensor<([\dx]*)xf32>", result)
            assert shape.count("x") == 1, result


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 7])
def test_solves_are_mapped_in_any_batches(batch_size):
    matrices = np.random.default_rng(0).normal(size=(7, 5, 5))
    matrices = (matrices @ matrices.transpose(0, 2, 1) + np.eye(5)).astype(np.float32)
    factors = map_solves(
        jnp.linalg.cholesky, jnp.asarray(matrices), batch_size=batch_size
    )
    np.testing.assert_allclose(factors, np.linalg.cholesky(matrices), rtol=1e-5)


def test_least_squares_of_several_problems_are_those_of_numpy():
    random = np.random.default_rng(0)
    inputs, weights = random.normal(size=(2, 40, 8)), random.normal(size=(2, 8, 5))
    masks = random.random((2, 8, 5)) < 0.5
    moments = np.einsum("pti,ptj->pij", inputs, inputs) / 40
    solve = jax.jit(lambda *args: map_solves(masked_least_squares, *args))
    weight, moment = (jnp.asarray(x, jnp.float32) for x in (weights, moments))
    fitted = solve(weight, jnp.asarray(masks), moment)
    for p in range(2):
        for output in range(5):
            kept = masks[p, :, output]
            target = inputs[p] @ weights[p, :, output]
            expected = np.zeros(8)
            expected[kept] = np.linalg.lstsq(inputs[p][:, kept], target)[0]
            np.testing.assert_allclose(fitted[p, :, output], expected, atol=1e-4)
