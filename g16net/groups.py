"""How many groups a grouped convolution has. Pure Python, shared by the layer and the cost tables."""


def num_groups(channels: int, group_size: int) -> int:
    """The number of groups in which `channels` channels are convolved when groups should hold `group_size` of them.

    `max(channels // group_size, 1)`, as published, where that divides the channels (the groups can then be wider than
    asked: 20 channels at group size 16 are one group of 20); otherwise the next smaller number that does. The rule
    decides the first block of B6 at group size 16, where the published code fails: 56 channels, 2 groups of 28.
    """
    if channels < 1 or group_size < 1:
        raise ValueError(f"channels and group_size must be positive integers; got {channels} and {group_size}")
    groups = max(channels // group_size, 1)
    while channels % groups:
        groups -= 1
    return groups
