"""Models by name: `efficientnet_{g<group size>}_{variant}_{norm}`, such as "efficientnet_g16_b0_ln_pn".

`list` needs no TensorFlow; `create` imports it.
"""

import builtins
import fnmatch
import re
from typing import Any, Dict, List, Optional, Sequence

from g16net.models import architecture, norms
from g16net.models.architecture import Level

# The group sizes that `list` shows, those of the paper; `create` takes any.
GROUP_SIZES = (1, 4, 16, 64)
_NAME = re.compile(r"efficientnet_g([1-9]\d*)_([a-z0-9]+)_([a-z_]+)")


def list(pattern: Optional[str] = None) -> List[str]:
    """Names of models, in the order of group size, variant and norm.

    Args:
        pattern: shell-style pattern for the whole name ("*_b[0-3]_ln_pn") or a part of it ("g16_b0"); all when None.
    """
    names = [
        f"efficientnet_g{group_size}_{variant.lower()}_{norm}"
        for group_size in GROUP_SIZES
        for variant in architecture.VARIANTS
        for norm in norms.NORMS
    ]
    if pattern is None:
        return names
    wild = any(character in pattern for character in "*?[")
    return [name for name in names if (fnmatch.fnmatchcase(name, pattern) if wild else pattern in name)]


def parse(name: str) -> Dict[str, Any]:
    """The arguments of `efficientnet.build` and `costs.count` that a model's name stands for, as a dict.

    Depthwise networks (g1) expand by 6, the others by 4, as in the paper (arXiv 2106.03640, section 3).

    Raises:
        ValueError: if there is no such model; with the nearest names.
    """
    match = _NAME.fullmatch(name)
    if not match or match[2].upper() not in architecture.VARIANTS or match[3] not in norms.NORMS:
        architecture.choose("model", name, list())
        raise AssertionError(name)
    group_size = int(match[1])
    return {
        "variant": match[2].upper(),
        "group_size": group_size,
        "expand_ratio": 6 if group_size == 1 else 4,
        "norm": match[3],
    }


def feature_info(name: str, out_levels: Optional[Sequence[int]] = None) -> List[Level]:
    """The feature maps of the model `name` as `Level(name, stride, channels, layer)`, from the finest on.

    Args:
        name: as of `create`.
        out_levels: numbers of levels, as of `create`; all where None.
    """
    return architecture.chosen_levels(parse(name)["variant"], out_levels)


def create(name: str, features_only: bool = False, out_levels: Optional[Sequence[int]] = None, **overrides: Any) -> Any:
    """Builds the model of that name, as a `keras.Model`.

    Args:
        name: one of `list()`, or the same with another group size.
        features_only: whether its output are feature maps by name, {"P3": [batch, height / 8, width / 8, channels],
            ...}, as of `backbone.backbone`, which makes the same of a model with weights.
        out_levels: with `features_only`, the levels to give out: (3, 4, 5) for strides 8, 16 and 32; None: all.
        **overrides: further arguments of `efficientnet.build`. Variant, group size and norm are the name's to say.

    Raises:
        ValueError: for an unknown name or level, or an override that contradicts the name.
    """
    arguments = parse(name)
    for key in ("variant", "group_size", "norm"):
        if key in overrides and overrides[key] != arguments[key]:
            raise ValueError(
                f"{key}={overrides[key]!r} contradicts the name {name!r}; use another name or efficientnet.build"
            )
    if out_levels is not None and not features_only:
        raise ValueError(f"out_levels={out_levels!r} is for features_only=True")
    if features_only:
        architecture.chosen_levels(arguments["variant"], out_levels)
        wrong = [key for key in ("include_top", "pooling", "num_classes", "classifier_activation") if key in overrides]
        if wrong:
            raise ValueError(f"features_only=True gives feature maps and has no top: leave out {', '.join(wrong)}")
        overrides["include_top"] = False
    from g16net import layers  # noqa: F401  first, as it says in one sentence where Keras or TensorFlow is not there
    from g16net.models import backbone, efficientnet

    model = efficientnet.build(**{"name": name, **arguments, **overrides})
    return backbone.backbone(model, out_levels) if features_only else model


__all__ = builtins.list(("GROUP_SIZES", "Level", "create", "feature_info", "list", "parse"))
