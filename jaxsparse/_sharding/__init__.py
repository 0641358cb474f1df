"""Arrays on a mesh: what to gather, and functions that run shard by shard."""

from jaxsparse._sharding.contraction import (
    Spare as Spare,
    partition_contraction as partition_contraction,
)
from jaxsparse._sharding.partition import (
    is_automatic as is_automatic,
    map_explicit_shards as map_explicit_shards,
    map_shards as map_shards,
    partition_groups as partition_groups,
    partition_rows as partition_rows,
    partition_unary as partition_unary,
)
from jaxsparse._sharding.reshard import (
    commit_like as commit_like,
    device_put_like as device_put_like,
    device_put_mask as device_put_mask,
    device_put_resized as device_put_resized,
    gather_groups as gather_groups,
    mask_sharding as mask_sharding,
    names_along as names_along,
    replicate as replicate,
    reshard_like as reshard_like,
    reshard_to as reshard_to,
    sharded_as_mask as sharded_as_mask,
    shards_along as shards_along,
)
