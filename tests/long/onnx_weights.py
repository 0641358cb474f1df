"""Runs all code of the guide on serving, and looks into the ONNX file that it writes.

Needs `python -m pip install jax2onnx onnxruntime`.
"""

import re
from pathlib import Path

import numpy as np
import pytest


onnx = pytest.importorskip("onnx", reason="requires jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_masked_weights_are_2_4_along_the_reduction_axis_in_onnx(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page: dict = {}
    for block in re.findall(r"```py(?:thon)?\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), page)

    model = onnx.load("model.onnx")
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert [arrays[node.input[1]].shape for node in products] == [(64, 256), (256, 64)]
    for node in products:
        # Gemm multiplies A (rows, k) by B, which is (k, n) unless it is transposed.
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        weight = arrays[node.input[1]].T if transposed else arrays[node.input[1]]
        groups = weight.reshape(weight.shape[0] // 4, 4, weight.shape[1])
        assert np.array_equal(
            np.count_nonzero(groups, axis=1), np.full_like(groups[:, 0], 2)
        )

    x = np.asarray(page["x"], np.float32)
    session = onnxruntime.InferenceSession("model.onnx")
    (result,) = session.run(None, {session.get_inputs()[0].name: x})
    up, down = (
        np.asarray(page["params"][name]["kernel"], np.float64)
        for name in ("up", "down")
    )
    expected = np.maximum(x @ up, 0) @ down
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)
