"""Tables on terminals of several widths, and piped: expected lines by hand."""

import numpy as np
import pytest
import safetensors.numpy

from jaxsparse._trees import fit_table, fold


LLAMA = {
    "model.embed_tokens.weight": (64, 16),
    **{
        f"model.layers.{i}.{name}.weight": shape
        for i in range(12)
        for name, shape in (
            ("self_attn.q_proj", (16, 16)),
            ("mlp.down_proj", (16, 32)),
            ("input_layernorm", (16,)),
        )
    },
    "lm_head.weight": (64, 16),
}


@pytest.fixture
def llama(tmp_path):
    path = tmp_path / "model.safetensors"
    draw = np.random.default_rng(0)
    state = {
        name: draw.uniform(1, 2, shape).astype(np.float32)
        for name, shape in LLAMA.items()
    }
    safetensors.numpy.save_file(state, path)
    return path


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ("0 1", "l.{0,1}.w"),
        ("0 1 2 3 4 5 6 7 8 9 10 11", "l.{0..11}.w"),
        ("11 2 1", "l.{1,2,11}.w"),
        ("0 1 2 5 7 8", "l.{0..2,5,7,8}.w"),
        ("00 01 02 09 10", "l.{00..02,09,10}.w"),
        ("3", "l.3.w"),
    ],
)
def test_a_row_of_alike_layers_says_which(numbers, name):
    rows = [(f"l.{number}.w", ("2:4",)) for number in numbers.split()]
    assert fold(rows) == [(name, "2:4")]


def test_a_row_stands_for_no_other_layers():
    """Of layers and experts, every name has all its numbers in all combinations."""
    numbers = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (3, 0)]
    rows = [(f"layers.{i}.experts.{j}.w", ("2:4",)) for i, j in numbers]
    assert [name for name, _ in fold(rows)] == [
        "layers.{0,1}.experts.{0,1}.w",
        "layers.2.experts.1.w",
        "layers.3.experts.0.w",
    ]
    rows = [("l.0.w", ("2:4",)), ("l.1.w", ("dense",)), ("l.2.w", ("2:4",))]
    assert fold(rows) == [("l.{0,2}.w", "2:4"), ("l.1.w", "dense")]


def test_names_are_shortened_and_reasons_wrapped_to_the_width():
    header = ("tensor", "shape", "plan")
    rows = [
        ("layer.{0..11}.attention.output.dense.weight", "768x768", "2:4 along axis 1"),
        (
            "bias",
            "3",
            "dense: ambiguous: 'bias' of rank 3; give --rule 'REGEX=2:4@AXIS'",
        ),
    ]
    # Of 60 columns, 28 are for the plan, 7 for the shape, and 21 for the name.
    assert fit_table(header, rows, 60) == [
        "tensor                 shape    plan",
        "layer…ut.dense.weight  768x768  2:4 along axis 1",
        "bias                   3        dense: ambiguous: 'bias' of",
        "                                rank 3; give --rule",
        "                                'REGEX=2:4@AXIS'",
    ]
    # Of 80, they are 41, and the name can have the layers.
    _, line, *_ = fit_table(header, rows, 80)
    assert line.split()[0] == "layer.{0..11}…tention.output.dense.weight"


def test_names_that_do_not_fit_differ_still():
    header, ending = ("tensor", "n"), "output.LayerNorm.weight"
    rows = [(f"layer.0.attention.{ending}", "1"), (f"layer.0.{ending}", "2")]
    for width in range(30, 48):
        _, *lines = fit_table(header, rows, width)
        assert max(map(len, lines)) <= width
        assert len({line.split()[0] for line in lines}) == 2


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_tables_take_the_width_of_the_terminal(run, llama, columns):
    output = llama.with_name("out.safetensors")
    for args in (
        ("inspect", llama),
        ("check", llama),
        ("prune", llama, "-o", output, "--force"),
        ("compare", llama, output),
    ):
        lines = run(*args, columns=columns).out.splitlines()
        assert max(map(len, lines)) <= columns
        *_, first, second, third = (x for x in lines if x.startswith("model."))
        for line in (first, second, third):
            assert line.split()[0].startswith("model.")


def test_the_table_of_a_dry_run(run, llama):
    weights = 12 * (16 * 16 + 16 * 32 + 16) + 2 * 64 * 16
    pruned = 12 * (16 * 16 + 16 * 32) // 2
    assert (weights, round(100 * pruned / weights, 1)) == (11_456, 40.2)
    # Compressed, pruned weights have half the values and four bits for each group.
    size = 4 * (weights - pruned) + 12 * (16 * 16 + 16 * 32) // 4 // 2
    assert (size / 1024, 4 * weights / 1024) == (27.875, 44.75)
    done = run("prune", llama, "--dry-run", columns=120)
    start = "model.layers.{0..11}"
    assert [line.rstrip() for line in done.out.splitlines()] == [
        "tensor                                        shape   plan",
        "lm_head.weight                                64x16   "
        "dense: head; give --head",
        "model.embed_tokens.weight                     64x16   dense: embedding",
        f"{start}.input_layernorm.weight   16      dense: bias, norm or scalar",
        f"{start}.mlp.down_proj.weight     16x32   2:4 along axis 1",
        f"{start}.self_attn.q_proj.weight  16x16   2:4 along axis 1",
        "total                                         11,456  "
        "24 of 26 pruned: 40.2 % of weights, 27.88 of 44.75 KiB if",
        f"{'':54}compressed",
        "would prune 24 of 38 tensors: at least 40.2 % of 11,456 weights would be zero",
        "nothing was written",
    ]
    assert [x.name for x in llama.parent.iterdir()] == [llama.name]


def test_piped_tables_have_one_whole_name_a_line(run, llama):
    output = llama.with_name("out.safetensors")
    for args in (
        ("inspect", llama),
        ("check", llama),
        ("prune", llama, "-o", output),
        ("compare", llama, output),
        ("inspect", llama, "--plain"),
    ):
        columns = 80 if "--plain" in args else None
        done = run(*args, columns=columns)
        assert done.err == ""
        rows = [line.split("\t") for line in done.out.splitlines()]
        assert rows[0][0] == "tensor"
        assert sorted(x[0] for x in rows[1 : 1 + len(LLAMA)]) == sorted(LLAMA)
        assert rows[1 + len(LLAMA)][0] == "total"
        assert {len(row) for row in rows[: 2 + len(LLAMA)]} == {len(rows[0])}
        (line,) = (x for x in done.out.splitlines() if "11.self_attn.q_proj" in x)
        assert line.startswith("model.layers.11.self_attn.q_proj.weight\t16x16\t")
