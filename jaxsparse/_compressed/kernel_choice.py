"""Which kernel multiplies by a weight on 132 multiprocessors, and in which tiles."""

from typing import Literal, NamedTuple


class KernelChoice(NamedTuple):
    """A kernel and its launch parameters.

    Attributes:
      kernel: `"few"` for few rows, otherwise `"split"` or `"whole"`. In `"few"` and
        `"split"` the blocks of a cluster split the `k` of one tile. In `"whole"` each
        block has tiles of its own, and the blocks share what they read.
      tile_rows: the rows of `x` in a tile.
      blocks: the blocks of a cluster.
      warps: of `"few"`: the warps of a block.
      wide: of `"few"`: how many times 64 outputs a tile has.
    """

    kernel: Literal["few", "split", "whole"]
    tile_rows: int
    blocks: int
    warps: int = 8
    wide: int = 1


#: By the blocks of a cluster, how many clusters an H100 runs at once with each block on
#: its own multiprocessor. A GPU that runs fewer takes longer; the results are the same.
MAX_CLUSTERS = {4: 30, 3: 40, 2: 66}


#: The most rows of kernel `"few"`; with more, weights of eight bits have `choose_tile`.
FEW_ROWS = 16


def choose_kernel(
    rows: int, k: int, *outs: int, eight_bits: bool = False, stack: int = 1
) -> KernelChoice:
    """Returns the kernel of 2:4 for `[rows, k]` by `[k, out]` on 132 multiprocessors.

    Of a stack of such products all tiles count, as those of several weights do.

    With few rows, the time is that of reading the weight. All multiprocessors must then
    read, so several blocks share a tile as long as each has its own multiprocessor.
    With many rows, tiles of 256 by 128 need the least time for their work, if there are
    enough of them. If there are more tiles than multiprocessors, the cache is the
    limit, so two blocks share what they read. Only few rows have a kernel here for
    values of eight bits; others have `choose_tile`. Measured on an H100 by
    `benchmarks.nm_matmul`, few rows on an H200.
    """

    def count_tiles(tile_rows: int, tile_out: int) -> int:
        across = sum(-(-out // tile_out) for out in outs)
        return stack * -(-rows // tile_rows) * across

    def choose_blocks(tiles: int, min_k: int, candidates: tuple[int, ...]) -> int:
        for blocks in candidates:
            if tiles <= MAX_CLUSTERS[blocks] and k >= min_k * blocks:
                return blocks
        return 1

    def split(tile_rows: int, tile_out: int) -> KernelChoice:
        blocks = choose_blocks(count_tiles(tile_rows, tile_out), 128, (4, 3, 2))
        return KernelChoice("split", tile_rows, blocks)

    if rows <= FEW_ROWS:
        tile_rows = 8 if rows <= 8 else 16
        tiles = count_tiles(tile_rows, 64)
        return _choose_few(tile_rows, tiles, k, eight_bits=eight_bits)
    if rows <= 32:
        return split(32, 64)
    if rows <= 128:
        fills_gpu = rows > 64 and count_tiles(128, 128) >= 64
        return KernelChoice("whole", 128, 1) if fills_gpu else split(64, 128)
    tiles = count_tiles(256, 128)
    if tiles >= 100:
        # Neighbours along the outputs share. A tile without a neighbour leaves the
        # second block idle.
        paired = 2 * count_tiles(256, 256) <= 1.05 * tiles
        return KernelChoice("whole", 256, 2 if paired and tiles > 132 else 1)
    # If three blocks for each of the large tiles cannot fill the GPU, halve the tiles.
    return split(256 if tiles > 30 else 128, 128)


def _choose_few(
    tile_rows: int, tiles: int, k: int, *, eight_bits: bool
) -> KernelChoice:
    """Returns how kernel `"few"` computes a number of tiles of 64 outputs.

    Sixteen warps fit on a multiprocessor: one block of 16, or two of 8. All blocks
    should run at once; then wider tiles are better than more of them. Clusters of four
    blocks that share a multiprocessor with others wait for one another. Values of eight
    bits need more shared memory.
    """
    most_pairs = 66 if eight_bits else 132
    for blocks, most in ((4, 30), (2, most_pairs)):
        if tiles <= most and k >= 512 * blocks:
            break
    else:
        blocks = 1
    warps = 16 if tiles * blocks <= 132 and not eight_bits else 8
    wide = 2 if tiles > 264 else 1
    return KernelChoice("few", tile_rows, blocks, warps, wide)


class ExpandingChoice(NamedTuple):
    """The launch parameters of the kernel that expands 4:8 and 8:16.

    Attributes:
      tile_rows: the rows of `x` in a tile.
      blocks: the blocks of a cluster, which split the `k` of one tile.
      wide: how many times 64 outputs a tile has.
    """

    tile_rows: int
    blocks: int
    wide: int


def choose_expanding(rows: int, k: int, *outs: int, stack: int = 1) -> ExpandingChoice:
    """Returns how 4:8 and 8:16 weights are multiplied on 132 multiprocessors.

    Each block has a multiprocessor for itself. Wide tiles share the rows that they
    read; narrow ones are for weights with few outputs, so that all multiprocessors
    read. Measured on an H200 for up to 16 rows.
    """
    tile_rows = 8 if rows <= 8 else 16

    def count_tiles(wide: int) -> int:
        across = sum(-(-out // (64 * wide)) for out in outs)
        return stack * -(-rows // tile_rows) * across

    wide = 1 if count_tiles(1) <= MAX_CLUSTERS[2] else 2
    for blocks in (4, 2):
        fits = count_tiles(wide) <= MAX_CLUSTERS[blocks] and k >= 512 * blocks
        if fits and (blocks == 2 or wide == 1):
            return ExpandingChoice(tile_rows, blocks, wide)
    return ExpandingChoice(tile_rows, 1, wide)


class TileChoice(NamedTuple):
    """The tiles of 128 outputs of a product with a weight of eight bits.

    Attributes:
      tile_rows: the rows of `x` in a tile.
      sharers: the blocks of a cluster that share what they read of `x`.
      slices: the blocks of a cluster that have the same tile, and slices of `k`.
    """

    tile_rows: int
    sharers: int = 1
    slices: int = 1


#: What `kernels/nm_matmul_mixed.cu` and `nm_matmul_bytes.cu` compile.
TILES = (
    *(TileChoice(rows, 1, slices) for rows in (32, 64, 128) for slices in (1, 2, 3)),
    *(TileChoice(256, sharers) for sharers in (1, 2)),
)

#: By its rows, how long a tile takes for one of `k`, in nanoseconds.
_TILE_TIMES = {32: 2.6, 64: 2.9, 128: 4.0, 256: 7.0}

#: How long each tile takes besides, and for each row each slice after the first.
_TILE_START, _SLICE_TIME = 4000, 20


def choose_tile(rows: int, k: int, *outs: int, stack: int = 1) -> TileChoice:
    """Returns the tile for `[rows, k]` by each `[k, out]` on 132 multiprocessors.

    It is that of the least estimated time. The larger a tile, the less is read for its
    work; but all multiprocessors must have one, or a slice of one. The times were
    measured on an H200 for `x` of 16 bits; one of eight takes 0.5 to 0.7 of them.

    Args:
      rows: those of `x`, or of each of a stack of matrices.
      k: the inputs.
      *outs: the outputs of each weight.
      stack: the number of matrices.
    """

    def count(tile_rows: int, tile_out: int) -> int:
        across = sum(-(-out // tile_out) for out in outs)
        return stack * -(-rows // tile_rows) * across

    def estimate(tile_rows: int, slices: int) -> float:
        at_once = MAX_CLUSTERS[slices] if slices > 1 else 132
        waves = -(-count(tile_rows, 128) // at_once)
        own = _TILE_START + k / slices * _TILE_TIMES[tile_rows]
        return waves * (own + (slices - 1) * tile_rows * _SLICE_TIME)

    alone = [tile for tile in TILES if tile.sharers == 1]
    best = min(alone, key=lambda tile: estimate(tile.tile_rows, tile.slices))
    # A tile without a neighbour leaves the second block idle.
    tiles = count(256, 128)
    if best.tile_rows == 256 and tiles > 132 and 40 * count(256, 256) <= 21 * tiles:
        return TileChoice(256, sharers=2)
    return best
