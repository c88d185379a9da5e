"""What all optimizers of a run have in common: which variables decay, and how fast each layer learns."""

import re
from typing import Any, Optional, Sequence, Tuple

from g16net import compat, native
from g16net.compat import ops, tf


def own_name(variable: Any) -> str:
    """The last part of a variable's name: `gamma` of `block1a_norm/gamma`, of `block1a_norm/gamma:0` and of a replica.

    Replicas of a mirrored variable are called `block1a_norm/gamma/replica_1:0`.
    """
    return _path(variable).split("/")[-1]


def _path(variable):
    path = getattr(variable, "path", variable.name).split(":")[0]
    return re.sub(r"/replica_\d+$", "", path)


MADE_OF = {"update", "update_step", "with_l2", "moments", "starts", "decayed"}  # methods that say what an update is


class Optimizer(compat.Optimizer):
    """An optimizer with weight decay for some variables, and a factor of the learning rate for each layer.

    Args:
        learning_rate: float or `LearningRateSchedule`.
        name: of the optimizer.
        weight_decay: coefficient, at least 0; each optimizer says what it does with it.
        exclude_from_weight_decay: regular expressions that match the whole last part of a variable's name. The default
            leaves out scales and shifts of norms; kernels, every bias, `proxy_gamma` and `proxy_beta` are decayed.
        layer_rates: pairs (regular expression, factor): a variable whose layer's name starts with the first that
            matches learns at so many times the learning rate; see `layer_rates`. A variable that no pattern matches
            must have its layer in its name.
        **kwargs: `accumulation`, `guard` and `clip_norm` (see `compat.Optimizer`), and those of the Keras optimizer.

    Raises:
        ValueError: for values out of range, for float16 or bfloat16 variables, whose state would stall, and with
            `layer_rates` for variables whose names hold no layer.
    """

    rule: Optional[str] = None  # its name in `native/update.h`, where the variables are updated all at once

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if MADE_OF & set(vars(cls)) and "rule" not in vars(cls):
            cls.rule = None  # that of the base class is another update

    def __init__(
        self,
        learning_rate: Any,
        name: str,
        weight_decay: float = 0.0,
        exclude_from_weight_decay: Any = ("gamma", "beta"),
        layer_rates: Sequence[Tuple[str, float]] = (),
        **kwargs: Any,
    ) -> None:
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay}; the recipe has 1e-5")
        if isinstance(exclude_from_weight_decay, str):
            raise ValueError(
                f"exclude_from_weight_decay must be a list of patterns, got {exclude_from_weight_decay!r}; "
                "put it in a list"
            )
        super().__init__(learning_rate, name, **kwargs)
        # Not named as Keras 3's attributes of the same meaning: its `weight_decay` is a decoupled one, and its
        # `exclude_from_weight_decay` is a method.
        self.decay_rate = float(weight_decay)
        self.undecayed = tuple(exclude_from_weight_decay)
        self.layer_rates = tuple((pattern, float(factor)) for pattern, factor in layer_rates)

    def decays(self, variable: Any) -> bool:
        """Whether `variable` gets the weight decay: on Keras 3 `exclude_from_weight_decay(...)` is asked too."""
        if not self.decay_rate or any(re.fullmatch(pattern, own_name(variable)) for pattern in self.undecayed):
            return False
        return self._use_weight_decay(self.as_built(variable))

    def rate_factor(self, variable: Any) -> float:
        path = _path(self.as_built(variable))
        for pattern, factor in self.layer_rates:
            if re.search(f"(^|/)({pattern})", path):
                return factor
        if self.layer_rates and "/" not in path:
            raise ValueError(
                f"layer_rates go by the names of layers, and the variable {path!r} has none in its name: build it in a "
                "layer that has a name, or add a pattern that matches it"
            )
        return 1.0

    def with_l2(self, variable: Any, gradient: Any) -> Any:
        """The gradient with that of the penalty `weight_decay / 2 * variable^2`, where the variable decays."""
        if self.decays(variable):
            gradient = gradient + self.decay_rate * ops.convert_to_tensor(variable)
        return gradient

    def numbers(self, learning_rate: Any) -> Sequence[Any]:
        """The scalars of `rule`; for subclasses that have one."""
        raise NotImplementedError

    def update_all(self, variables: Any, gradients: Any, learning_rate: Any, **slots: Any) -> Any:
        if self.rule is None or not native.enabled() or not all(tf.as_dtype(v.dtype) == tf.float32 for v in variables):
            return None
        new_values, new_slots, finite = native.update(
            self.rule,
            self.numbers(learning_rate),
            *([tf.convert_to_tensor(tensor) for tensor in tensors] for tensors in (gradients, variables)),
            slots=[[tf.convert_to_tensor(variable) for variable in slot] for slot in slots.values()],
            rates=[self.rate_factor(variable) for variable in variables],
            decays=[self.decay_rate if self.decays(variable) else 0.0 for variable in variables],
        )
        for states, values in zip((variables, *slots.values()), (new_values, *new_slots)):
            for state, value in zip(states, values):
                state.assign(value, read_value=False)
        return finite

    def check_variables(self, variables: Any) -> None:
        for variable in variables:
            dtype = ops.dtype_name(variable.dtype)
            if dtype in ("float16", "bfloat16"):
                raise ValueError(
                    f"{type(self).__name__.split('>')[-1]} keeps float32 state, got the {dtype} variable "
                    f"{variable.name}; use the policy mixed_float16 or mixed_bfloat16, which keeps variables in float32"
                )

    def get_config(self):
        config = super().get_config()
        config.update(
            weight_decay=self.decay_rate,
            accumulation=self.accumulation,
            guard=self.guard,
            clip_norm=self.clip_norm,
            exclude_from_weight_decay=list(self.undecayed),
            layer_rates=[list(pair) for pair in self.layer_rates],
        )
        follow = {"global_clipnorm": self.clip_norm, "gradient_accumulation_steps": self.accumulation > 1}
        for name, ours in follow.items():
            if ours or config.get(name) is None:
                config.pop(name, None)
        return config


def layer_rates(decay: float, parts: Sequence[str]) -> Sequence[Tuple[str, float]]:
    """`layer_rates` of an optimizer for layer-wise decay: the part `i` from the end learns at `decay ** i` times the
    learning rate (timm's `--layer-decay`, a part here being a stage).

    Args:
        decay: in (0, 1]; 1: none.
        parts: names from the end of the network, such as `("top", "block7", ..., "stem")`.
    """
    return [] if decay == 1 else [(f"{part}(?![0-9])", decay**index) for index, part in enumerate(parts)]
