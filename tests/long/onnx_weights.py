"""Runs all code of the guide on serving, and looks into the ONNX file that it writes.

A script, since jax2onnx does not go with the requirements of the tests:
`python -m pip install . jax2onnx onnxruntime`, then
`python tests/long/onnx_weights.py docs/serving.md`.
"""

import os
import re
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def run_code(page: Path) -> dict[str, Any]:
    """Runs the code of a page and returns its variables."""
    variables: dict[str, Any] = {}
    for block in re.findall(r"```py(?:thon)?\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, page.name, "exec"), variables)
    return variables


def products_of(model: Any) -> list[np.ndarray]:
    """Returns the weight (k, n) of each product of a model."""
    to_array = import_module("onnx.numpy_helper").to_array
    arrays = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    weights = []
    for node in model.graph.node:
        if node.op_type == "Gemm":  # it multiplies (rows, k) by (k, n), or by (n, k).T
            is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
            weight = arrays[node.input[1]]
            weights.append(weight.T if is_transposed else weight)
    return weights


def main() -> None:
    page = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        variables = run_code(page)
        model = import_module("onnx").load("model.onnx")
        session = import_module("onnxruntime").InferenceSession("model.onnx")
        os.chdir(page.parent)

    weights = products_of(model)
    assert [weight.shape for weight in weights] == [(64, 256), (256, 64)]
    for weight in weights:
        groups = weight.reshape(weight.shape[0] // 4, 4, weight.shape[1])
        assert (np.count_nonzero(groups, axis=1) == 2).all()

    x = np.asarray(variables["x"], np.float32)
    (result,) = session.run(None, {session.get_inputs()[0].name: x})
    up, down = (
        np.asarray(variables["params"][name]["kernel"], np.float64)
        for name in ("up", "down")
    )
    expected = np.maximum(x @ up, 0) @ down
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)
    print(f"{len(weights)} weights are 2:4 along their reduction axes in ONNX")


if __name__ == "__main__":
    main()
