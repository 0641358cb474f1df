"""What is given where something else belongs is named, with what to give instead."""

import jax
import numpy as np
import pytest

import jaxsparse as js


W = np.arange(1, 513, dtype=np.float32).reshape(32, 16)
PARAMS = {"kernel": W}
SHAPES = {"kernel": jax.ShapeDtypeStruct((64, 64), "float32")}
RULES = [js.Rule(".*", "2:4", axis=0)]
X = np.eye(32, dtype=np.float32)


def forward(params, x):
    return x @ params["kernel"]


def statistics():
    return js.collect_statistics(forward, PARAMS, [X])


#: Each function with its argument that is given something else, and its remedy.
CALLS = {
    "calibration_report": (
        lambda given: js.calibration_report(PARAMS, given, statistics()),
        "give what a searcher's search, or prune_sequentially, returned",
    ),
    "compensate_low_rank": (
        lambda given: js.compensate_low_rank(PARAMS, given, statistics(), rank=1),
        "give what a searcher's search, or prune_sequentially, returned",
    ),
    "prune_sequentially": (
        lambda given: js.prune_sequentially(
            forward, PARAMS, [X], given, boundaries=["kernel"]
        ),
        "give SparseGPTSearcher",
    ),
    "wanda_scores": (
        lambda given: js.wanda_scores(PARAMS, given),
        "give collect_statistics",
    ),
    "ria_scores": (
        lambda given: js.ria_scores(PARAMS, given),
        "give collect_statistics",
    ),
    "input_importances": (
        lambda given: js.input_importances(PARAMS, given),
        "give collect_statistics",
    ),
    "distribute_by_erdos_renyi": (
        js.distribute_by_erdos_renyi,
        "give plan_sparsity",
    ),
    "allocate": (
        lambda given: js.allocate(given, PARAMS, statistics(), budget=0.9),
        "allocate needs plans of plan_sparsity",
    ),
    "grow_back": (
        lambda given: js.grow_back(given, PARAMS),
        "shrink_params returns one",
    ),
    "shrink_params": (
        lambda given: js.shrink_params(PARAMS, groups=given, sparsity=0.5),
        "give channel_groups",
    ),
    "permute_channels": (
        lambda given: js.permute_channels(PARAMS, RULES, forward, (X,), groups=given),
        "give channel_groups",
    ),
    "nm_matmul": (lambda given: js.nm_matmul(X, given), "give compress(w"),
    "nm_matmul, transposed": (
        lambda given: js.nm_matmul(X, js.compress(W, axis=0), transposed=given),
        "give compress(w",
    ),
    "nm_matmul by one of two": (
        lambda given: js.nm_matmul(X, given, transposed=js.compress(W.T, axis=0)),
        "give compress(w",
    ),
    "quantize_compressed": (js.quantize_compressed, "give compress(w"),
    "to_semi_structured": (js.to_semi_structured, "give compress(w"),
}


@pytest.mark.usefixtures("without_annotations")
@pytest.mark.parametrize("given", [W, 3, object()], ids=["array", "number", "object"])
@pytest.mark.parametrize("name", CALLS)
def test_another_kind_is_named_with_the_remedy(name, given):
    call, remedy = CALLS[name]
    with pytest.raises(TypeError) as error:
        call(given)
    kind = "" if name == "allocate" else type(given).__name__
    assert f"got {kind}" in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.usefixtures("without_annotations")
@pytest.mark.parametrize("name", ["calibration_report", "compensate_low_rank"])
def test_a_tree_of_arrays_is_no_result(name):
    with pytest.raises(TypeError, match=f"{name} takes a SearchResult or .*, got dict"):
        CALLS[name][0](PARAMS)


def test_parameters_of_another_tree_are_named():
    result = js.MagnitudeSearcher(RULES).search(PARAMS)
    with pytest.raises(ValueError, match="'other' of shape"):
        js.calibration_report({"other": W}, result, statistics())
    with pytest.raises(ValueError, match=r"'kernel'.*\(64, 64\)"):
        js.compensate_low_rank(SHAPES, result, statistics(), rank=1)
