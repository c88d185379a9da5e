"""Models by name: `efficientnet_{g<group size>}_{variant}_{norm}`, such as "efficientnet_g16_b0_ln_pn".

`list` needs no TensorFlow; `create` imports it.
"""

import builtins
import fnmatch
import re
from typing import Any, Dict, List, Optional

from g16net.models import architecture, norms

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


def create(name: str, **overrides: Any) -> Any:
    """Builds the model of that name, as a `keras.Model`.

    Args:
        name: one of `list()`, or the same with another group size.
        **overrides: further arguments of `efficientnet.build`. Variant, group size and norm are the name's to say.

    Raises:
        ValueError: for an unknown name, or an override that contradicts it.
    """
    arguments = parse(name)
    for key in ("variant", "group_size", "norm"):
        if key in overrides and overrides[key] != arguments[key]:
            raise ValueError(
                f"{key}={overrides[key]!r} contradicts the name {name!r}; use another name or efficientnet.build"
            )
    from g16net import layers  # noqa: F401  first, as it says in one sentence where Keras or TensorFlow is not there
    from g16net.models import efficientnet

    return efficientnet.build(**{"name": name, **arguments, **overrides})


__all__ = builtins.list(("GROUP_SIZES", "create", "list", "parse"))
