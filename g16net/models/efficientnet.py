"""EfficientNet with group convolutions and a choice of norms, built from the tables in `architecture`.

The model is one flat functional graph whose layers bear stable names (`stem_conv`, `block3b_expand_conv`,
`block3b_expand_norm`, `block3b_conv`, `block3b_norm`, `block3b_se`, `block3b_project_conv`, `block3b_project_norm`,
`block3b_drop`, `block3b_add`, `top_conv`, `top_norm`, `top_pool`, `top_dropout`, `predictions`): checkpoints, pipeline
splits and the choice of layers to train go by them. Architecture: arXiv 1905.11946; group size and expansion:
arXiv 2106.03640, section 3; proxy-normalised activations: arXiv 2106.03743.
"""

import zlib
from typing import Any, List, Optional

from g16net import layers
from g16net.compat import keras
from g16net.models import architecture, norms

# Points with which the proxy's moments are computed: 200 as published; 32 of the better rule are more exact.
PROXY_POINTS = {"quantile": 200, "gauss_hermite": 32}
POOLINGS = {None: None, "avg": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D"}


def build(
    variant="B0",
    group_size=16,
    expand_ratio=4,
    norm="ln_pn",
    num_classes=1000,
    input_size=None,
    activation=None,
    norm_groups=4,
    norm_group_size=None,
    norm_epsilon=1e-3,
    strided_groups=False,
    dropout=None,
    survival_prob=0.8,
    mean=(123.68, 116.78, 103.94),
    std=1.0,
    proxy_epsilon=0.03,
    quadrature="quantile",
    include_top=True,
    pooling=None,
    classifier_activation=None,
    seed=None,
    name=None,
):
    """Builds a network as a functional `keras.Model`.

    Its input are images [batch, height, width, 3] of 0..255, float32 (integer arrays are cast); its output are logits
    [batch, num_classes], float32 under every dtype policy. In the `_pn` kinds the division by the proxy's standard
    deviation is delayed past the pooling of squeeze-and-excite, and left out at the top, where the dense layer absorbs
    it: the published network.

    Args:
        variant: "B0" to "B7", "LITE0" to "LITE4", "CIFAR", "TINY" or "NANO", or an `architecture.Variant` of one's own.
        group_size: channels in a group of the spatial convolutions; 1 is depthwise.
        expand_ratio: expanded channels of a block per input channel; the paper has 4 at group size 16, 6 at 1.
        norm: a name in `norms.NORMS`, such as "bn", or "ln_pn", layer norm with proxy-normalised activations.
        num_classes: outputs of the dense layer.
        input_size: pixels, a number or (height, width), where the graph shall be of one size (IPU); None: any size.
        activation: "swish", "relu" or "relu6"; the variant's where None.
        norm_groups: groups of the norm in "gn" and "gn_pn".
        norm_group_size: channels in a group of those norms, where their number shall follow from it (timm's form).
        norm_epsilon: added to the variance of every norm.
        strided_groups: whether channel c is in group c % norm_groups (the IPU library's form) and not in a block.
        dropout: rate before the dense layer; the variant's where None.
        survival_prob: keep probability of stochastic depth after the last block, falling linearly from 1 (arXiv
            1603.09382); 1 for none.
        mean, std: numbers, one or one a channel: the input becomes (image - mean) / std.
        proxy_epsilon: added to the proxy's variance.
        quadrature: how the proxy's moments are computed, "quantile" (published) or "gauss_hermite".
        include_top: False ends at the last feature map [batch, height / 32, width / 32, channels], in the policy's
            compute dtype (with `_pn`, centred and not scaled).
        pooling: without the top, "avg" or "max" for that of the map over its pixels [batch, channels], float32.
        classifier_activation: None for logits, or an activation such as "softmax".
        seed: makes initial weights, dropout and stochastic depth repeatable; each layer draws from it and its name.
        name: of the model; by default as in `models.list()`.

    Raises:
        ValueError: for a value outside of the above; names it and what is known.
    """
    proxied = norms.get(norm).proxied
    architecture.choose("quadrature", quadrature, PROXY_POINTS)
    architecture.choose("pooling", pooling, POOLINGS)
    if pooling and include_top:
        raise ValueError(f"pooling={pooling!r} is for include_top=False; the top has its own, over means")
    scale = architecture.get_variant(variant)
    activation = scale.activation if activation is None else activation
    architecture.choose("activation", activation, architecture.ACTIVATIONS)
    dropout = scale.dropout if dropout is None else dropout

    def layer_seed(layer):
        return None if seed is None else zlib.crc32(f"{seed}/{layer}".encode()) % 2**30

    def initializer(layer, mode):
        return keras.initializers.VarianceScaling(2.0, mode, "truncated_normal", seed=layer_seed(layer))

    def conv(x, filters, layer, kernel=1, strides=1):
        return layers.Conv2D(
            filters,
            kernel,
            strides,
            padding="same",
            data_format="channels_last",
            use_bias=False,
            kernel_initializer=initializer(layer, "fan_out"),
            name=layer,
        )(x)

    def normalise(x, prefix, activation=None, **others):
        grouping = norm_groups, norm_group_size, strided_groups
        layer = norm_layer(norm, x.shape[-1], activation, *grouping, norm_epsilon, name=f"{prefix}norm", **others)
        return layer(x)

    def norm_act(x, prefix, delayed_scale=False, pooled=False):
        """Norm and activation; with proxy norm and `delayed_scale` a pair (centred activation, scale). With `pooled`
        followed by the activation's means over pixels."""
        if not proxied:
            return normalise(x, prefix, activation, pooled=pooled)
        return normalise(
            x,
            prefix,
            activation,
            pooled=pooled,
            proxy_epsilon=proxy_epsilon,
            delayed_scale=delayed_scale,
            quadrature=quadrature,
            points=PROXY_POINTS[quadrature],
        )

    def mbconv(x, block):
        prefix = f"block{block.name}_"
        shortcut = x
        if block.expand_ratio != 1:
            x = conv(x, block.expanded_channels, f"{prefix}expand_conv")
            x = norm_act(x, f"{prefix}expand_")
        x = layers.GroupConv2D(
            block.kernel,
            strides=block.stride,
            group_size=group_size,
            kernel_initializer=initializer(f"{prefix}conv", "fan_in"),
            name=f"{prefix}conv",
        )(x)
        excited = block.se_width > 0
        x = norm_act(x, prefix, delayed_scale=excited, pooled=excited)
        if excited:
            x = layers.SqueezeExcite(
                block.se_width, activation, pooled=True, seed=layer_seed(f"{prefix}se"), name=f"{prefix}se"
            )(x)
        x = conv(x, block.out_channels, f"{prefix}project_conv")
        x = normalise(x, f"{prefix}project_")
        if block.skip:
            if block.survival < 1:
                drop = f"{prefix}drop"
                x = layers.StochasticDepth(block.survival, seed=layer_seed(drop), name=drop)(x)
            x = keras.layers.Add(name=f"{prefix}add")([x, shortcut])
        return x

    mean, std = ((v,) * 3 if isinstance(v, (int, float)) else v for v in (mean, std))
    height, width = input_size if isinstance(input_size, (tuple, list)) else (input_size, input_size)
    image = keras.Input((height, width, 3), dtype="float32", name="image")
    x = layers.Normalize(mean, std, name="normalize")(image)
    x = conv(x, architecture.stem_channels(scale), "stem_conv", kernel=3, strides=scale.stem_stride)
    x = norm_act(x, "stem_")
    for block in architecture.blocks(scale, group_size, expand_ratio, survival_prob):
        x = mbconv(x, block)
    x = conv(x, architecture.top_channels(scale), "top_conv")
    x = norm_act(x, "top_", delayed_scale=True)
    x = x[0] if proxied else x

    if include_top:
        # Means over thousands of pixels and logits stay in float32, whatever the policy.
        x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="top_pool", dtype="float32")(x)
        if dropout:
            x = layers.Dropout(dropout, seed=layer_seed("top_dropout"), name="top_dropout", dtype="float32")(x)
        x = keras.layers.Dense(
            num_classes,
            activation=classifier_activation,
            kernel_initializer=keras.initializers.GlorotUniform(seed=layer_seed("predictions")),
            name="predictions",
            dtype="float32",
        )(x)
    elif pooling:
        pool = getattr(keras.layers, POOLINGS[pooling])
        x = pool(data_format="channels_last", name="top_pool", dtype="float32")(x)
    if name is None:
        label = next((known for known, row in architecture.VARIANTS.items() if row == scale), "custom").lower()
        name = f"efficientnet_g{group_size}_{label}_{norm}"
    return keras.Model(image, x, name=name)


def norm_layer(
    norm: str,
    channels: int,
    activation: Optional[str] = None,
    groups: int = 4,
    group_size: Optional[int] = None,
    strided: bool = False,
    epsilon: float = 1e-3,
    **arguments: Any,
) -> keras.layers.Layer:
    """The layer of a norm in a network, with the activation that follows it, or after a projection without one.

    Args:
        norm: a name in `norms.NORMS`.
        channels: of its input.
        activation: one of `architecture.ACTIVATIONS`, or None.
        groups, group_size, strided: `norm_groups`, `norm_group_size` and `strided_groups` of `build`.
        epsilon: added to the variance.
        **arguments: further ones of the layer.
    """
    row = norms.get(norm)
    number = row.groups(channels, groups, group_size)
    arguments = {"epsilon": epsilon, "activation": activation, **arguments}
    if row.proxied and activation:
        return layers.ProxyNormActivation(groups=number, strided=strided, **arguments)
    if row.grouping == "chosen":
        arguments.update(groups=number, strided=strided)
    return getattr(layers, row.layer)(center=not row.proxied, **arguments)


def learnt(model: keras.Model) -> List[keras.layers.Layer]:
    """The layers with weights that are learnt, in order: Keras 3 counts the random states of others among theirs."""
    return [
        layer
        for layer in model.layers
        if layer.weights and not isinstance(layer, (layers.Dropout, layers.StochasticDepth))
    ]
