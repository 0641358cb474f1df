"""Files of weights in other formats, and the Python that converts them."""

from pathlib import Path


_TORCH = """\
import torch, safetensors.torch
state = torch.load({path!r}, map_location="cpu", weights_only=True)
safetensors.torch.save_file({{k: v.clone() for k, v in state.items()}}, {new!r})"""

_ONNX = """\
import onnx, onnx.numpy_helper, safetensors.numpy
tensors = onnx.load({path!r}).graph.initializer
safetensors.numpy.save_file({{x.name: onnx.numpy_helper.to_array(x).copy() for x in \
tensors}}, {new!r})"""

_MSGPACK = """\
import flax.serialization, jaxsparse, pathlib
params = flax.serialization.msgpack_restore(pathlib.Path({path!r}).read_bytes())
jaxsparse.save_sparse({new!r}, params)"""

_EQUINOX = """\
import equinox, jaxsparse
model = equinox.tree_deserialise_leaves({path!r}, like)  # like: such a model
jaxsparse.save_sparse({new!r}, equinox.filter(model, equinox.is_array))"""

_CONVERSIONS = {
    ".pt": ("PyTorch", _TORCH),
    ".pth": ("PyTorch", _TORCH),
    ".bin": ("PyTorch", _TORCH),
    ".onnx": ("ONNX", _ONNX),
    ".msgpack": ("Flax", _MSGPACK),
    ".eqx": ("Equinox", _EQUINOX),
}


def conversion(path: Path) -> str | None:
    """Returns what to do with a file of another format; None for all other files."""
    if path.suffix not in _CONVERSIONS:
        return None
    name, code = _CONVERSIONS[path.suffix]
    lines = code.format(path=str(path), new=str(path.with_suffix(".safetensors")))
    indented = "\n".join(f"  {line}" for line in lines.splitlines())
    return (
        f"{path} must end in .safetensors. Convert a file of {name} in Python:\n"
        f"{indented}"
    )
