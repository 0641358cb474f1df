"""Channels that go through a model together: permuted, or taken out."""

from jaxsparse._channels.channel_moves import (
    Move as Move,
    move_leaf as move_leaf,
    moves_of as moves_of,
)
from jaxsparse._channels.consumers import (
    can_permute as can_permute,
    find_all_consumers as find_all_consumers,
)
from jaxsparse._channels.find_groups import (
    channel_groups as channel_groups,
    find_groups as find_groups,
)
from jaxsparse._channels.groups import (
    ChannelGroup as ChannelGroup,
    ChannelGroups as ChannelGroups,
    ChannelMember as ChannelMember,
    ChannelRole as ChannelRole,
)
from jaxsparse._channels.member_view import (
    read_member as read_member,
)
from jaxsparse._channels.permutation_result import (
    PermutationResult as PermutationResult,
    PermutedGroup as PermutedGroup,
)
from jaxsparse._channels.permute import (
    permute_channels as permute_channels,
)
