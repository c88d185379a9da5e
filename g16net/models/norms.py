"""The norms, a row each: everything that other parts ask about one. Pure Python.

A new norm is a layer in `g16net.layers` and a row here. The layer is constructed with `epsilon`, `center` and
`activation` (None after a projection), and with `groups` and `strided` where `grouping` is "chosen".
"""

from typing import Any, NamedTuple, Optional, Tuple

from g16net.models import architecture


class Norm(NamedTuple):
    """A norm, with the activation that follows it everywhere but after a projection.

    label: in tables and figures; words: in prose.
    colour: of its marks (Okabe and Ito's palette).
    layer: class in `g16net.layers`; of a proxied norm, the one after projections, where there is no activation.
    grouping: how channels are grouped: None (each by itself), "one" group of all, or "chosen" by `model.norm_groups`.
    proxied: whether the activation is proxy-normalised, by `layers.ProxyNormActivation`, which also normalises.
    over_batch: whether training normalises over the batch and keeps moving averages: at inference these are constants
        that go into the convolution before the norm; a pipeline cannot update them.
    owns_activation: whether norm and activation are one pass over memory; otherwise the activation is one by itself.
    params: trained parameters per channel, with an activation and after a projection.
    passes: tensors read and written, forward in training and backward, without activation and proxy.
    libraries: those whose published weights have this norm: "keras.applications", "timm", or "tf1", the authors' code.
    """

    label: str
    words: str
    colour: str
    layer: str
    grouping: Optional[str]
    proxied: bool = False
    over_batch: bool = False
    owns_activation: bool = True
    params: Tuple[int, int] = (2, 2)
    passes: Tuple[int, int] = (3, 5)  # read for the statistics, read and written; backward: 2 for the sums, 3
    libraries: Tuple[str, ...] = ()

    def groups(self, channels: int, groups: int, group_size: Optional[int] = None) -> Optional[int]:
        """The number of groups that `channels` are normalised in, None without groups.

        groups, group_size: what was chosen: their number, or, taking precedence, the channels in one.
        """
        if self.grouping == "chosen":
            return channels // group_size if group_size else groups
        return 1 if self.grouping == "one" else None


NORMS = {
    "bn": Norm(
        "BN",
        "batch norm",
        "#D55E00",
        "BatchNorm",
        grouping=None,
        over_batch=True,
        owns_activation=False,
        libraries=("keras.applications", "timm"),
    ),
    "gn": Norm("GN", "group norm", "#0072B2", "GroupNorm", "chosen", libraries=("timm", "tf1")),
    "ln": Norm("LN", "layer norm", "#CC79A7", "LayerNorm", "one", libraries=("timm", "tf1")),
    "ln_pn": Norm(
        "LN+PN",
        "layer norm + proxy norm",
        "#009E73",
        "LayerNorm",
        "one",
        proxied=True,
        params=(4, 1),
        libraries=("tf1",),
    ),
    "gn_pn": Norm(
        "GN+PN",
        "group norm + proxy norm",
        "#56B4E9",
        "GroupNorm",
        "chosen",
        proxied=True,
        params=(4, 1),
        libraries=("tf1",),
    ),
}


def get(norm: str) -> Norm:
    """The row of the norm called `norm`; ValueError with the known names where there is none."""
    return NORMS[architecture.choose("norm", norm, NORMS)]


def published(library: str, **fields: Any) -> Tuple[str, ...]:
    """The names of the norms for which `library` has weights and whose row has these `fields`, in order."""
    return tuple(
        name
        for name, row in NORMS.items()
        if library in row.libraries and all(getattr(row, field) == value for field, value in fields.items())
    )
