"""Arrays on a mesh: what to gather, and functions that run shard by shard."""

from jaxsparse._sharding.partition import (
    by_explicit_shards as by_explicit_shards,
    by_shards as by_shards,
    is_automatic as is_automatic,
    partition as partition,
    partition_one as partition_one,
)
from jaxsparse._sharding.reshard import (
    gathered as gathered,
    mask_sharding as mask_sharding,
    names_along as names_along,
    placed_as_mask as placed_as_mask,
    placed_like as placed_like,
    resharded as resharded,
    sharded_as_mask as sharded_as_mask,
    sharded_like as sharded_like,
    shards_along as shards_along,
    whole_groups as whole_groups,
)
