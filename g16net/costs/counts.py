"""What a network costs, from the tables alone: parameters, multiply-adds, activations and memory. Pure Python.

Counting needs no TensorFlow and no model, so that a configuration can be judged before anything is started. `layers`
gives the rows that `count` sums: they bear the names of the built model's layers, with the same shapes and parameters.
"""

from typing import NamedTuple

from g16net.models import architecture, norms

# A weight that is trained: the float32 value, its gradient, and RMSProp's two accumulators.
BYTES_PER_TRAINED_WEIGHT = 16


class Layer(NamedTuple):
    """One layer for one image. Its output is `height` x `width` x `out_channels`.

    kind: "conv" (the stem's and the 1x1 ones), "group_conv", "norm" (with the activation and the proxy that it owns),
        "activation" (of a batch norm, a pass by itself), "squeeze_excite", "add", "pool" or "dense".
    params: trainable elements.
    macs: multiply-adds of convolutions and matrix products; norms, activations and bias additions count as none.
    activations: output elements of the convolutions and matrix products inside.
    """

    name: str
    kind: str
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int
    params: int
    macs: int
    activations: int

    @property
    def elements(self):
        """Elements of the output."""
        return self.height * self.width * self.out_channels

    @property
    def activated(self):
        """Whether an activation follows this norm: all but those after a projection."""
        return self.kind == "norm" and not self.name.endswith("_project_norm")


class Costs(NamedTuple):
    """Sums over a network; see `count`."""

    params: int
    macs: int
    activations: int
    memory: int


class _Rows(list):
    """The list of layers, which knows the shape that the next one gets."""

    def __init__(self, height, width, channels):
        super().__init__()
        self.height, self.width, self.channels = height, width, channels

    def layer(self, name, kind, params=0, macs=0, activations=0, kernel=1, stride=1, groups=1, out_channels=None):
        in_channels, self.channels = self.channels, out_channels or self.channels
        shape = (self.height, self.width, in_channels, self.channels)
        self.append(Layer(name, kind, *shape, kernel, stride, groups, params, macs, activations))

    def conv(self, name, out_channels, kernel=1, stride=1, groups=1, kind="conv"):
        self.height, self.width = -(-self.height // stride), -(-self.width // stride)  # 'SAME'
        params = kernel * kernel * self.channels // groups * out_channels
        pixels = self.height * self.width
        self.layer(name, kind, params, pixels * params, pixels * out_channels, kernel, stride, groups, out_channels)

    def norm(self, name, norm, activated=True):
        """A norm, and its activation where that is a layer by itself."""
        row = norms.get(norm)
        self.layer(f"{name}norm", "norm", row.params[0 if activated else 1] * self.channels)
        if activated and not row.owns_activation:
            self.layer(f"{name}activation", "activation")

    def squeeze_excite(self, name, reduced):
        weights = 2 * self.channels * reduced
        self.layer(name, "squeeze_excite", weights + reduced + self.channels, weights, reduced + self.channels)


def _height_width(variant, size):
    size = architecture.get_variant(variant).native if size is None else size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if height < 1 or width < 1:
        raise ValueError(f"size must be a positive number of pixels or (height, width); got {size!r}")
    return height, width


def image_elements(variant="B0", size=None):
    """Elements of an image of `size` pixels, the variant's native ones where None."""
    height, width = _height_width(variant, size)
    return height * width * 3


def layers(variant="B0", group_size=16, expand_ratio=4, norm="ln_pn", size=None, num_classes=1000):
    """The layers of a network in order, as a list of `Layer`, for an image of `size` pixels.

    Left out are the normalisation of the input and what acts in training only (stochastic depth, dropout).
    Arguments as in `count`.
    """
    scale = architecture.get_variant(variant)
    rows = _Rows(*_height_width(scale, size), channels=3)
    rows.conv("stem_conv", architecture.stem_channels(scale), kernel=3, stride=scale.stem_stride)
    rows.norm("stem_", norm)
    for block in architecture.blocks(scale, group_size, expand_ratio):
        name = f"block{block.name}_"
        if block.expand_ratio != 1:
            rows.conv(f"{name}expand_conv", block.expanded_channels)
            rows.norm(f"{name}expand_", norm)
        rows.conv(
            f"{name}conv", block.expanded_channels, block.kernel, block.stride, groups=block.groups, kind="group_conv"
        )
        rows.norm(name, norm)
        if block.se_width:
            rows.squeeze_excite(f"{name}se", block.se_width)
        rows.conv(f"{name}project_conv", block.out_channels)
        rows.norm(f"{name}project_", norm, activated=False)
        if block.skip:
            rows.layer(f"{name}add", "add")
    rows.conv("top_conv", architecture.top_channels(scale))
    rows.norm("top_", norm)
    rows.height = rows.width = 1
    rows.layer("top_pool", "pool")
    weights = rows.channels * num_classes
    rows.layer("predictions", "dense", weights + num_classes, weights, num_classes, out_channels=num_classes)
    return list(rows)


def count(
    variant="B0",
    group_size=16,
    expand_ratio=4,
    norm="ln_pn",
    size=None,
    num_classes=1000,
    batch=1,
    dtype_bytes=4,
):
    """Costs of a network as `Costs(params, macs, activations, memory)`.

    Args:
        variant: name of a variant ("B0" to "B7", "LITE0" to "LITE4", "CIFAR", ...) or an `architecture.Variant`.
        group_size: channels in a group of the spatial convolutions.
        expand_ratio: expanded channels of a block per input channel.
        norm: a name in `norms.NORMS`.
        size: image size in pixels, a number or (height, width); the variant's native one where None.
        num_classes: outputs of the dense layer.
        batch: images in a (micro) batch; only `memory` depends on it.
        dtype_bytes: bytes of an element of the activations: 4, or 2 in mixed precision.

    Returns:
        params: trainable parameters.
        macs: multiply-adds for one image, of every convolution (squeeze-and-excite included) and the dense layer.
        activations: output elements of those convolutions and the dense layer, for one image, as timm counts them.
        memory: bytes that training on one device has to hold. For each trainable parameter 16: float32 weight,
            gradient and RMSProp's two accumulators (and a copy in `dtype_bytes` in mixed precision); for each image
            the input of every layer whose gradient needs it, so each such tensor once: inputs of convolutions, norms,
            activations, squeeze-and-excite and the dense layer, but not of additions and pooling. Temporaries, batch
            norm's moving statistics, the weight average and the framework itself come on top.
    """
    rows = layers(variant, group_size, expand_ratio, norm, size, num_classes)
    params = sum(row.params for row in rows)
    kept = image_elements(variant, size)
    kept += sum(row.elements for row, user in zip(rows, rows[1:]) if user.kind not in ("add", "pool"))
    weight_bytes = BYTES_PER_TRAINED_WEIGHT + (dtype_bytes if dtype_bytes < 4 else 0)
    return Costs(
        params=params,
        macs=sum(row.macs for row in rows),
        activations=sum(row.activations for row in rows),
        memory=params * weight_bytes + batch * kept * dtype_bytes,
    )
