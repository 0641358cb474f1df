"""Where `prune` writes to: it replaces only what it may, and writes atomically."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxsparse._compressed import is_compressed
from jaxsparse._files import (
    index_of,
    is_orbax_checkpoint,
    left_out,
    rewrite_tensors,
    stale_files,
    weights_of,
    without_index,
    write_model_folder,
    write_orbax_arrays,
)
from jaxsparse.cli.leaves import Kind, Leaves


_IS_KIND: Mapping[Kind, Callable[[Path], bool]] = {
    "file": Path.is_file,
    "folder": lambda path: path.is_dir() and weights_of(path) is not None,
    "orbax": is_orbax_checkpoint,
}


def checked_output(leaves: Leaves, output: Path, force: bool) -> Path:
    """Returns the path that is written: a file, the index of several, or a folder.

    Raises:
      ValueError: the tensors may not be written there.
    """
    if leaves.kind != "file":
        if output.suffix == ".safetensors":
            raise ValueError(
                f"{output} must be a folder, because {leaves.path} is one: give -o "
                f"{output.with_suffix('')}"
            )
        _check_not_nested(leaves.path, output)
        written, output = output, output.resolve()
        targets = [output]
    else:
        if (output := without_index(output)).suffix != ".safetensors":
            raise ValueError(
                f"{output} must end in .safetensors, because {leaves.path} is a file: "
                "to write a folder, give the folder of the model as FILE"
            )
        written = index_of(output) if len(leaves.headers) > 1 else output
        targets = [output, index_of(output)]
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent}: create it")
    _check_not_input(leaves, [*targets, *stale_files(output, keep=())])
    for path in filter(Path.exists, targets):
        if not force:
            raise ValueError(f"{path} already exists: give --force to replace it")
        if not _IS_KIND[leaves.kind](path):
            raise ValueError(
                f"{path} is not the same kind of file as {leaves.path}: remove it"
            )
    return written


def output_to_write(
    leaves: Leaves, output: Path | None, *, force: bool, dry_run: bool
) -> Path | None:
    """Returns the path that is written, and None for a dry run.

    Raises:
      ValueError: there is neither, or the tensors may not be written there.
    """
    if output is None and not dry_run:
        raise ValueError("give --output OUT, or --dry-run to write nothing")
    written = None if output is None else checked_output(leaves, output, force)
    return None if dry_run else written


def check_prunable(leaves: Leaves) -> None:
    """Raises `ValueError` if there is no tensor, or one that is compressed."""
    if not leaves.specs:
        raise ValueError(f"{leaves.path} has no tensors")
    for name, spec in leaves.specs.items():
        if is_compressed(spec):
            raise ValueError(
                f"{leaves.path}: tensor {name!r} is already compressed: give the file "
                "that it came from"
            )


def write_changed(
    leaves: Leaves,
    output: Path,
    change: Callable[[str, np.ndarray], np.ndarray],
    *,
    replace: bool,
) -> None:
    """Writes a changed copy of the tensors, and of what else is in their folder.

    Raises:
      FileExistsError: the output exists and is not to be replaced.
    """
    if leaves.kind == "orbax":
        write_orbax_arrays(leaves.path, output, change, replace=replace)
        return
    assert leaves.weights is not None
    if leaves.kind == "folder":
        write_model_folder(leaves.path, leaves.headers, output, change, replace=replace)
    else:
        path = without_index(output)
        rewrite_tensors(leaves.weights, leaves.headers, path, change, replace=replace)


def files_left_out(leaves: Leaves) -> list[str]:
    """Returns the files that are not copied, because they are in other formats."""
    return left_out(leaves.path, leaves.headers) if leaves.kind == "folder" else []


def _check_not_input(leaves: Leaves, targets: list[Path]) -> None:
    inputs = [leaves.path, *(header.path for header in leaves.headers)]
    if leaves.weights is not None:
        inputs += [leaves.weights, index_of(leaves.weights)]
    resolved = {path.resolve() for path in inputs}
    for path in targets:
        if path.resolve() in resolved:
            raise ValueError(f"{path} is part of the input: give another output")


def _check_not_nested(path: Path, output: Path) -> None:
    """Raises `ValueError` if one of two folders is inside the other."""
    resolved_path, resolved_output = path.resolve(), output.resolve()
    if (
        resolved_path in resolved_output.parents
        or resolved_output in resolved_path.parents
    ):
        raise ValueError(
            f"{output} is inside the input {path}, or contains it: give another output"
        )
