"""Qwix: the code of the page on compressed weights, which no other test runs."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

import jaxsparse as js
from tests.libraries.journey import library


PAGE = Path(__file__).parents[2] / "docs" / "compressed.md"


def run_code(qtype):
    """What the page's first code and that for Qwix print, and their variables."""
    text = PAGE.read_text()
    (section,) = re.findall(r"### Qwix\n(.*?)\n## ", text, re.DOTALL)
    blocks = [
        *re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:1],
        *re.findall(r"```py\n(.*?)```", section, re.DOTALL),
    ]
    assert len(blocks) == 2
    variables, printed = {}, ""
    for block in blocks:
        with redirect_stdout(io.StringIO()) as out:
            exec(compile(block.replace("int8", qtype), PAGE.name, "exec"), variables)
        printed = out.getvalue()
    return printed, variables


@pytest.mark.parametrize("qtype", ["int8", "float8_e4m3fn"])
def test_what_qwix_quantizes_keeps_its_zeros_and_is_compressed(qtype):
    library("qwix")
    printed, variables = run_code(qtype)
    assert printed == "True\n"
    array, small, x, y = (variables[name] for name in ("array", "w8", "x", "y"))
    assert (array.qvalue.dtype, small.values.dtype) == (qtype, qtype)
    exact = np.asarray(array.qvalue, np.float64) * np.asarray(array.scale, np.float64)
    assert ((exact != 0).reshape(16, 4, -1).sum(1) == 2).all()
    np.testing.assert_array_equal(js.decompress(small), exact.astype(np.float32))
    # Rows are rounded to 8 bits: at worst by 1/16 of each number, in e4m3.
    x = np.asarray(x, np.float64)
    bound = np.abs(x).max(1, keepdims=True) / 16 * np.abs(exact).sum(0)
    assert (np.abs(y - x @ exact) <= bound).all()
