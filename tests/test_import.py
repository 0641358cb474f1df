"""What `import jaxsparse` brings along: the public names, and nothing heavy."""

import importlib
import inspect
import subprocess
import sys

import pytest

import jaxsparse


PUBLIC = [
    "ADMMSearcher",
    "Block",
    "CalibrationReport",
    "Channel",
    "ChannelGroup",
    "ChannelGroups",
    "ChannelMember",
    "Compensation",
    "CompensationReport",
    "Compressed",
    "DroppedActivations",
    "LeafCompensation",
    "LeafError",
    "LeafPlan",
    "LeafReport",
    "LeafSharding",
    "LeafShrinkage",
    "LeafStatistics",
    "LowRank",
    "MagnitudeSearcher",
    "MaskLogits",
    "NM",
    "PerOutput",
    "PermutationResult",
    "PermutedGroup",
    "Plan",
    "ReconstructedStage",
    "Reconstruction",
    "RegrowthState",
    "Rule",
    "SearchResult",
    "Searcher",
    "SequentialResult",
    "ShardingReport",
    "ShrinkReport",
    "ShrinkResult",
    "SparseFile",
    "SparseFileError",
    "SparseGPTSearcher",
    "SparseState",
    "SparsityReport",
    "StraightThroughState",
    "TorchFile",
    "Unstructured",
    "Use",
    "WandaSearcher",
    "abstract_state",
    "accelerate",
    "add_sr_ste_decay",
    "allocate",
    "apply_adapters",
    "calibration_report",
    "channel_groups",
    "check_sparsity",
    "collect_statistics",
    "compensate_low_rank",
    "compress",
    "compress_params",
    "compute_valid_1d_patterns",
    "contraction_axes",
    "create_adapters",
    "create_asp_mask",
    "create_masks",
    "cubic_schedule",
    "decompress",
    "decompress_params",
    "distillation_loss",
    "distribute_by_erdos_renyi",
    "dropped_activations",
    "feature_loss",
    "fill",
    "fit_weights",
    "flax_axes",
    "from_semi_structured",
    "from_torch_layout",
    "get_masks",
    "get_nmprune_info",
    "grow_back",
    "init_mask_logits",
    "input_importances",
    "keep_params_sparse",
    "leaf_uses",
    "learned_masks",
    "load_sparse",
    "m4n2_1d",
    "mask_params",
    "metrics",
    "mn_1d_best",
    "nm_matmul",
    "one_shot_schedule",
    "open_sparse",
    "open_tensors",
    "open_torch",
    "outlier_ratios",
    "permute_channels",
    "plan_sparsity",
    "prune_sequentially",
    "quantize_compressed",
    "random_scores",
    "reap_scores",
    "recalibrate_batch_stats",
    "refine_masks",
    "regrow_at_random",
    "regrow_by_gradient",
    "reshape_1d",
    "ria_scores",
    "saliency_scores",
    "save_sparse",
    "save_torch",
    "sharding_report",
    "shrink_params",
    "sparse_apply",
    "sparsity",
    "sparsity_report",
    "straight_through",
    "to_semi_structured",
    "to_torch_layout",
    "wanda_scores",
    "wrap_optimizer",
]
ELSEWHERE = {
    "io": [
        "SparseFile",
        "SparseFileError",
        "TorchFile",
        "from_torch_layout",
        "load_sparse",
        "open_sparse",
        "open_tensors",
        "open_torch",
        "save_sparse",
        "save_torch",
        "to_torch_layout",
    ],
    "magnitude": [
        "compute_valid_1d_patterns",
        "create_asp_mask",
        "fill",
        "get_nmprune_info",
        "m4n2_1d",
        "mn_1d_best",
        "reshape_1d",
    ],
    "report": ["LeafReport", "SparsityReport", "sparsity_report"],
}


def test_the_public_names_are_these():
    names = [
        name
        for name, value in vars(jaxsparse).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]
    assert sorted(names) == sorted(PUBLIC)


@pytest.mark.parametrize("module", ELSEWHERE)
def test_a_public_module_has_the_same_objects(module):
    names = ELSEWHERE[module]
    objects = vars(importlib.import_module(f"jaxsparse.{module}"))
    assert [name for name in names if objects[name] is not vars(jaxsparse)[name]] == []


def test_the_plots_are_these():
    from jaxsparse import plots

    names = [name for name in vars(plots) if name.startswith("plot_")]
    assert sorted(names) == ["plot_flip_rate", "plot_leaves", "plot_mask"]


def test_the_core_imports_none_of_its_optional_packages():
    code = """
import sys
import jaxsparse
optional = {"flax", "matplotlib", "safetensors", "typer", "rich", "equinox"}
heavy = optional & set(sys.modules)

print(sorted(heavy))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
