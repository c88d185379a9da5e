"""The EfficientNet family as tables: blocks, variants and the rules that scale one by the other. Pure Python.

The builder, the cost tables and the checks of configurations read the same rows from here, so that none of them can
describe another network than the one that is built. Baseline and scaling: arXiv 1905.11946, section 4; group size and
expansion: arXiv 2106.03640, section 3.
"""

import difflib
import math
from typing import Any, Collection, List, NamedTuple, Optional, Tuple, Union

from g16net.groups import num_groups

STEM_CHANNELS = 32
TOP_CHANNELS = 1280
SE_RATIO = 0.25


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
    """

    width: float
    depth: float
    dropout: float
    native: int
    half: Optional[int] = None
    stem_stride: int = 2
    stage2_stride: int = 2
    stages: Tuple[int, ...] = tuple(range(1, len(BLOCKS) + 1))

    @property
    def stride(self) -> int:
        """Pixels of the image for one pixel of the last feature map: the period in which 'SAME' padding repeats."""
        return self.stem_stride * math.prod(self.stage_stride(number) for number in self.stages)

    def stage_stride(self, number: int) -> int:
        """Stride of the first block of stage `number`."""
        return self.stage2_stride if number == 2 else BLOCKS[number - 1].stride


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
    "CIFAR": Variant(0.5, 1.0, 0.0, 32, stem_stride=1, stage2_stride=1),
    # For tests: all seven stages, eight blocks, a last feature map of 2 x 2. 27 thousand parameters at group size 1 and
    # expansion 6, 97 thousand at group size 16 and expansion 4.
    "TINY": Variant(0.0625, 0.3, 0.0, 32, stage2_stride=1),
    # For tests of what does not depend on the network: three blocks, one that does not expand, one with a shortcut and
    # stochastic depth, and the last.
    "NANO": Variant(0.0625, 0.3, 0.0, 32, stage2_stride=1, stages=(1, 2, 7)),
}


class Block(NamedTuple):
    """One MBConv block. `groups` are those of its spatial convolution, which has `expanded_channels` channels."""

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
    return round_width(STEM_CHANNELS, get_variant(variant).width)


def top_channels(variant: Union[str, "Variant"]) -> int:
    """Channels of the last 1x1 convolution, which the pooling takes."""
    return round_width(TOP_CHANNELS, get_variant(variant).width)


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
    repeats = [round_depth(BLOCKS[number - 1].repeats, variant.depth) for number in variant.stages]
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
                    se_width=max(1, int(in_channels * SE_RATIO)),
                    skip=stride == 1 and in_channels == out_channels,
                    survival=1 - (1 - survival_prob) * len(rows) / total,
                )
            )
            in_channels = out_channels
    return rows
