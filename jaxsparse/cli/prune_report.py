"""What `prune` prints: its plan, what was written, and what was not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxsparse._channels import PermutedGroup
from jaxsparse._plans import LeafPlan, Plan, count_text
from jaxsparse._reports import LeafError
from jaxsparse._trees import bytes_text, shape_text, weights_text
from jaxsparse.cli.calibrate import Calibration
from jaxsparse.cli.console import print_line, print_table
from jaxsparse.cli.leaves import Leaves
from jaxsparse.cli.method import Method
from jaxsparse.cli.permute import gains_as_json
from jaxsparse.cli.totals import Totals, compressed_bytes, totals


def print_pruned(
    leaves: Leaves,
    output: Path | None,
    plan: Plan,
    zeros: Mapping[str, int],
    *,
    plain: bool,
) -> None:
    """Prints the table of a plan and what was written, or would be if no output is."""
    total = totals(leaves, zeros)
    print_table(
        ("tensor", "shape", "plan"),
        (
            (leaf.path, (shape_text(leaf.shape or ()), leaf.decision))
            for leaf in plan.leaves
        ),
        _total_cells(leaves, plan, total),
        plain=plain,
    )
    if plan.lacks_head:
        print_line(
            "no output layer was recognised: if one of these tensors is one, keep it "
            "dense with --rule 'REGEX=dense'"
        )
    count = f"{len(plan.sparse)} of {len(plan.leaves)} tensors"
    if output is None:
        print_line(
            f"would prune {count}: at least {total.sparsity} of {total.weights:,} "
            "weights would be zero"
        )
        print_line("nothing was written")
    else:
        print_line(total.sentence(f"pruned {count}"))
        print_line(f"wrote {output}")


def _total_cells(leaves: Leaves, plan: Plan, total: Totals) -> tuple[str, ...]:
    dense = sum(leaves.bytes_of.values())
    compressed = sum(
        compressed_bytes(leaf, leaves.specs[leaf.path].dtype.itemsize)
        for leaf in plan.leaves
    )
    return (
        "total",
        weights_text(total.weights),
        f"{count_text(plan.leaves)}: {total.sparsity} of weights, "
        f"{bytes_text(compressed, dense)} if compressed",
    )


def planned_as_json(leaf: LeafPlan) -> dict[str, Any]:
    """Returns the plan of a tensor, as for JSON."""
    return {
        "leaf": leaf.path,
        "shape": list(leaf.shape or ()),
        "pattern": None if leaf.pattern is None else str(leaf.pattern),
        "axis": leaf.axis,
        "reason": leaf.reason,
    }


def pruned_as_json(
    leaves: Leaves,
    output: Path | None,
    plan: Plan,
    left_out: list[str],
    calibration: Calibration | None,
    errors: Mapping[str, LeafError],
    gains: Sequence[PermutedGroup] | None,
) -> dict[str, Any]:
    """Returns the plan, the paths, and the files that are not copied, as for JSON.

    With the method, what it was calibrated on, the errors of the tensors, and what
    permuted channels gain.
    """
    method = Method.magnitude if calibration is None else calibration.method
    error_of = {name: leaf.error for name, leaf in errors.items()}
    magnitude_error_of = {name: leaf.magnitude_error for name, leaf in errors.items()}
    return {
        "file": str(leaves.path),
        "output": None if output is None else str(output),
        "not_copied": left_out,
        "method": method.value,
        "calibration": calibration and calibration.as_json(),
        "permuted": None if gains is None else gains_as_json(gains),
        "leaves": [
            {
                **planned_as_json(leaf),
                "error": error_of.get(leaf.path),
                "magnitude_error": magnitude_error_of.get(leaf.path),
            }
            for leaf in plan.leaves
        ],
    }
