"""The EfficientNet family as tables: blocks, variants and the rules that scale one by the other. Pure Python.

The builder, the cost tables and the checks of configurations read the same rows from here, so that none of them can
describe another network than the one that is built. Baseline and scaling: arXiv 1905.11946, section 4; group size and
expansion: arXiv 2106.03640, section 3.
"""

import difflib
import math
from typing import Any, Collection, List, NamedTuple, Optional, Sequence, Tuple, Union

from g16net.groups import num_groups

STEM_CHANNELS = 32
TOP_CHANNELS = 1280
ACTIVATIONS = ("swish", "relu", "relu6")


class Stage(NamedTuple):
    """A row of the baseline: `repeats` blocks, the first of which has the stride."""

    kernel: int
    repeats: int
    out_channels: int
    stride: int


BLOCKS = (
    Stage(3, 1, 16, 1),
    Stage(3, 2, 24, 2),
    Stage(5, 2, 40, 2),
    Stage(3, 3, 80, 2),
    Stage(5, 3, 112, 1),
    Stage(5, 4, 192, 2),
    Stage(3, 1, 320, 1),
)


class Variant(NamedTuple):
    """How a network is scaled from the baseline, and the image sizes (pixels) that it is trained at.

    `native` is the size of the EfficientNet paper, `half` the one with about half the multiply-adds (None where the
    authors published none). `stages` are the numbers of the baseline's stages that it has; blocks keep their names.
    `se_ratio` is the width of squeeze-and-excite over a block's input channels, 0 for none. With `fixed_ends` the stem,
    the last 1x1 convolution and the repeats of the first and the last stage are the baseline's, whatever the scale.
    """

    width: float
    depth: float
    dropout: float
    native: int
    half: Optional[int] = None
    stem_stride: int = 2
    stage2_stride: int = 2
    stages: Tuple[int, ...] = tuple(range(1, len(BLOCKS) + 1))
    se_ratio: float = 0.25
    activation: str = "swish"
    fixed_ends: bool = False

    @property
    def stride(self) -> int:
        """Pixels of the image for one pixel of the last feature map: the period in which 'SAME' padding repeats."""
        return self.stem_stride * math.prod(self.stage_stride(number) for number in self.stages)

    def stage_stride(self, number: int) -> int:
        """Stride of the first block of stage `number`."""
        return self.stage2_stride if number == 2 else BLOCKS[number - 1].stride

    def repeats(self, number: int) -> int:
        """Blocks of stage `number`."""
        fixed = self.fixed_ends and number in (self.stages[0], self.stages[-1])
        return round_depth(BLOCKS[number - 1].repeats, 1.0 if fixed else self.depth)


# EfficientNet-Lite, made for phones and 8-bit arithmetic: "Higher accuracy on vision models with EfficientNet-Lite",
# TensorFlow's blog, 2020; sizes as in the TPU repository.
_LITE: Any = {"se_ratio": 0.0, "activation": "relu6", "fixed_ends": True}

VARIANTS = {
    "B0": Variant(1.0, 1.0, 0.2, 224, 160),
    "B1": Variant(1.0, 1.1, 0.2, 240, 176),
    # Half of B2 is 192 in the paper and 196 in the published configuration file. Only 196 leaves the remainder of 260
    # modulo 32, which fine-tuning at the native size asks for; from 192 it is 256 or 288.
    "B2": Variant(1.1, 1.2, 0.3, 260, 192),
    "B3": Variant(1.2, 1.4, 0.3, 300, 204),
    "B4": Variant(1.4, 1.8, 0.4, 380, 252),
    "B5": Variant(1.6, 2.2, 0.4, 456, 328),
    "B6": Variant(1.8, 2.6, 0.5, 528),
    "B7": Variant(2.0, 3.1, 0.5, 600),
    "LITE0": Variant(1.0, 1.0, 0.2, 224, **_LITE),
    "LITE1": Variant(1.0, 1.1, 0.2, 240, **_LITE),
    "LITE2": Variant(1.1, 1.2, 0.3, 260, **_LITE),
    "LITE3": Variant(1.2, 1.4, 0.3, 280, **_LITE),
    "LITE4": Variant(1.4, 1.8, 0.3, 300, **_LITE),
    "CIFAR": Variant(0.5, 1.0, 0.0, 32, stem_stride=1, stage2_stride=1),
    # For tests: all seven stages, eight blocks, a last feature map of 2 x 2. 27 thousand parameters at group size 1 and
    # expansion 6, 97 thousand at group size 16 and expansion 4.
    "TINY": Variant(0.0625, 0.3, 0.0, 32, stage2_stride=1),
    # For tests of what does not depend on the network: three blocks, one that does not expand, one with a shortcut and
    # stochastic depth, and the last.
    "NANO": Variant(0.0625, 0.3, 0.0, 32, stage2_stride=1, stages=(1, 2, 7)),
}


class Block(NamedTuple):
    """One MBConv block. `groups` are those of its spatial convolution, which has `expanded_channels` channels;
    `se_width` is 0 without squeeze-and-excite."""

    name: str
    kernel: int
    stride: int
    in_channels: int
    expanded_channels: int
    out_channels: int
    expand_ratio: int
    groups: int
    se_width: int
    skip: bool
    survival: float


def choose(what: str, value: Any, choices: Collection[Any]) -> Any:
    """`value` if it is one of `choices`; otherwise a ValueError that names them and the nearest one."""
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    shown = ", ".join(str(choice) for choice in list(choices)[:12]) + (", ..." if len(choices) > 12 else "")
    raise ValueError(f"Unknown {what} {value!r}.{hint} Known: {shown}")


def get_variant(variant: Union[str, "Variant"]) -> "Variant":
    """The `Variant` of a name such as "B0", in either case; a `Variant` of one's own is returned as it is."""
    if isinstance(variant, Variant):
        return variant
    return VARIANTS[choose("variant", str(variant).upper(), VARIANTS)]


def scaled(variant: Union[str, "Variant"], width: Optional[float] = None, depth: Optional[float] = None) -> "Variant":
    """`variant` with another width (factor of channels) or depth (factor of repeats) than its own, where given."""
    row = get_variant(variant)
    return row._replace(width=row.width if width is None else width, depth=row.depth if depth is None else depth)


def round_width(channels: int, width: float) -> int:
    """`channels * width` to the nearest multiple of 8, at least 8, never down by more than 10 %."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


def round_depth(repeats: int, depth: float) -> int:
    """`repeats * depth`, rounded up."""
    return math.ceil(repeats * depth)


def stem_channels(variant: Union[str, "Variant"]) -> int:
    """Channels of the stem's convolution."""
    return _end(STEM_CHANNELS, variant)


def top_channels(variant: Union[str, "Variant"]) -> int:
    """Channels of the last 1x1 convolution, which the pooling takes."""
    return _end(TOP_CHANNELS, variant)


def _end(channels, variant):
    row = get_variant(variant)
    return channels if row.fixed_ends else round_width(channels, row.width)


def blocks(
    variant: Union[str, "Variant"] = "B0", group_size: int = 16, expand_ratio: int = 4, survival_prob: float = 0.8
) -> List[Block]:
    """The blocks of a network, in order, as a list of `Block`.

    Args:
        variant: name of a row of `VARIANTS`, or a `Variant`.
        group_size: channels in a group of the spatial convolutions; 1 is depthwise.
        expand_ratio: expanded channels of a block per input channel, outside stage 1, which does not expand.
        survival_prob: keep probability that a block after the last would have; it falls linearly from 1.

    Raises:
        ValueError: for an unknown variant, or a number out of range.
    """
    variant = get_variant(variant)
    if not (isinstance(expand_ratio, int) and expand_ratio >= 1):
        raise ValueError(f"expand_ratio must be a positive integer, such as 4 (G16) or 6 (G1); got {expand_ratio!r}")
    if not 0 < survival_prob <= 1:
        raise ValueError(f"survival_prob must be in (0, 1], 1 for no stochastic depth; got {survival_prob!r}")
    repeats = [variant.repeats(number) for number in variant.stages]
    total = sum(repeats)
    rows: List[Block] = []
    in_channels = stem_channels(variant)
    for number, count in zip(variant.stages, repeats):
        stage = BLOCKS[number - 1]
        out_channels = round_width(stage.out_channels, variant.width)
        ratio = 1 if number == 1 else expand_ratio
        for index in range(count):
            stride = variant.stage_stride(number) if index == 0 else 1
            expanded = in_channels * ratio
            rows.append(
                Block(
                    name=f"{number}{chr(ord('a') + index)}",
                    kernel=stage.kernel,
                    stride=stride,
                    in_channels=in_channels,
                    expanded_channels=expanded,
                    out_channels=out_channels,
                    expand_ratio=ratio,
                    groups=num_groups(expanded, group_size),
                    se_width=max(1, int(in_channels * variant.se_ratio)) if variant.se_ratio else 0,
                    skip=stride == 1 and in_channels == out_channels,
                    survival=1 - (1 - survival_prob) * len(rows) / total,
                )
            )
            in_channels = out_channels
    return rows


class Level(NamedTuple):
    """The last feature map of a network at one stride, as timm's `feature_info` has it.

    name: "P3", ...: the stride is 2^3. layer: of the model, whose output it is.
    """

    name: str
    stride: int
    channels: int
    layer: str


def levels(variant: Union[str, "Variant"] = "B0", **arguments: Any) -> List[Level]:
    """The levels of a network's pyramid, from the finest on.

    Args:
        variant: as of `blocks`.
        **arguments: further ones of `blocks`, which change none of the levels.
    """
    row, found = get_variant(variant), {}
    stride = row.stem_stride
    for block in blocks(row, **arguments):
        stride *= block.stride
        layer = f"block{block.name}_{'add' if block.skip else 'project_norm'}"
        found[stride] = Level(f"P{stride.bit_length() - 1}", stride, block.out_channels, layer)
    return list(found.values())


def chosen_levels(variant: Union[str, "Variant"], numbers: Optional[Sequence[int]] = None) -> List[Level]:
    """The `levels` of `variant` with these `numbers`, in their order, such as (3, 4, 5); all where None.

    Raises:
        ValueError: for numbers that the variant has not, or none at all.
    """
    known = {int(level.name[1:]): level for level in levels(variant)}
    return [known[number] for number in check_levels(numbers, list(known))]


def check_levels(numbers: Optional[Sequence[int]], known: Sequence[int]) -> List[int]:
    """`numbers` of levels as a list, all that are `known` where None; ValueError where one is not, or none is given."""
    given = list(known if numbers is None else numbers)
    if not given or len(set(given)) < len(given) or not set(given) <= set(known):
        raise ValueError(
            f"out_levels must be different ones of {', '.join(map(str, known))}, the levels of this network (level 3 "
            f"has stride 8); got {numbers!r}"
        )
    return given
