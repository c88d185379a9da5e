"""The other optimizers that EfficientNets are trained with: as Keras and timm have them, with this project's mask.

What `compat.Optimizer` gives to all of them: accumulation of gradients, the guard against values that are not finite,
clipping by the norm of a whole update, exact resume, files that both generations of Keras read.
"""

from typing import Any

from g16net import compat
from g16net.compat import ops
from g16net.optim.base import Optimizer, own_name


@compat.register
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as Keras': with L2 in the gradient g and the learning rate r,

        velocity  = momentum * velocity - r * g
        w         = w + velocity                              or with `nesterov`  w + momentum * velocity - r * g

    Args:
        momentum: in [0, 1).
        nesterov: whether the gradient counts as taken after the step of the momentum.
        learning_rate, weight_decay, **kwargs: see `base.Optimizer`; `weight_decay` is L2 in the gradient.

    Raises:
        ValueError: for values out of range.
    """

    slots = {"velocity": "zeros"}
    rule = "sgd"

    def __init__(
        self, learning_rate: Any, momentum: float = 0.9, nesterov: bool = True, name: str = "SGD", **kwargs: Any
    ) -> None:
        _check_share("momentum", momentum)
        super().__init__(learning_rate, name, **kwargs)
        self.momentum, self.nesterov = float(momentum), nesterov

    def update(self, variable: Any, gradient: Any, learning_rate: Any, velocity: Any) -> Any:
        step = learning_rate * self.with_l2(variable, gradient)
        new = self.momentum * velocity - step
        velocity.assign(new)
        return variable.assign_add(self.momentum * new - step if self.nesterov else new)

    def numbers(self, learning_rate: Any) -> Any:
        return learning_rate, self.momentum, float(self.nesterov)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}


class _Moments(Optimizer):
    """With running means of the gradient (share `beta_1` kept) and of its square (`beta_2`), both from 0."""

    def __init__(self, learning_rate, beta_1, beta_2, name, epsilon=None, **kwargs):
        _check_share("beta_1", beta_1)
        _check_share("beta_2", beta_2)
        if epsilon is not None and not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        super().__init__(learning_rate, name, **kwargs)
        self.beta_1, self.beta_2, self.epsilon = float(beta_1), float(beta_2), epsilon

    def moments(self, gradient, mean, square):
        """Takes the gradient into both, and returns them without the bias of their start."""
        new = self.beta_1 * mean + (1 - self.beta_1) * gradient
        new_square = self.beta_2 * square + (1 - self.beta_2) * ops.square(gradient)
        mean.assign(new)
        square.assign(new_square)
        start, square_start = self.starts(new.dtype)
        return new / start, new_square / square_start

    def starts(self, dtype="float32"):
        """What is missing in both means, begun at 0, as factors."""
        step = ops.cast(ops.convert_to_tensor(self.iterations), dtype) + 1.0
        return 1 - self.beta_1**step, 1 - self.beta_2**step

    def shares(self):
        """What both keep and what they take, in Python's precision: 1 - 0.999 has three digits less in float32."""
        return self.beta_1, 1 - self.beta_1, self.beta_2, 1 - self.beta_2

    def decayed(self, variable, direction):
        """The direction of the step with the decoupled weight decay."""
        return direction + self.decay_rate * variable if self.decays(variable) else direction

    def get_config(self):
        config = {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2}
        return config if self.epsilon is None else {**config, "epsilon": self.epsilon}


@compat.register
class AdamW(_Moments):
    """Adam with decoupled weight decay (1711.05101): for the moments m and v without the bias of their start,

        w  = w - r * (m / (sqrt(v) + epsilon) + weight_decay * w)

    Args:
        beta_1, beta_2: shares that the means of gradient and square keep, in [0, 1).
        epsilon: added to the root.
        learning_rate, weight_decay, **kwargs: see `base.Optimizer`.

    Raises:
        ValueError: for values out of range.
    """

    slots = {"mean": "zeros", "square": "zeros"}
    rule = "adamw"

    def __init__(
        self,
        learning_rate: Any,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        name: str = "AdamW",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, name, epsilon, **kwargs)

    def update(self, variable: Any, gradient: Any, learning_rate: Any, mean: Any, square: Any) -> Any:
        m, v = self.moments(gradient, mean, square)
        return variable.assign_sub(learning_rate * self.decayed(variable, m / (ops.sqrt(v) + self.epsilon)))

    def numbers(self, learning_rate: Any) -> Any:
        return (learning_rate, *self.shares(), self.epsilon, *self.starts())


@compat.register
class Lamb(_Moments):
    """AdamW whose step of each variable is as long as the variable itself (1904.00962), for large batches.

    A variable or step of norm 0 takes the step as it is. Variables that do not decay are scaled too, as published.

    Args:
        beta_1, beta_2, epsilon: as of `AdamW`.
        learning_rate, weight_decay, **kwargs: see `base.Optimizer`.

    Raises:
        ValueError: for values out of range.
    """

    slots = {"mean": "zeros", "square": "zeros"}

    def __init__(
        self,
        learning_rate: Any,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        name: str = "Lamb",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, name, epsilon, **kwargs)

    def update(self, variable: Any, gradient: Any, learning_rate: Any, mean: Any, square: Any) -> Any:
        m, v = self.moments(gradient, mean, square)
        direction = self.decayed(variable, m / (ops.sqrt(v) + self.epsilon))
        own, length = _norm(ops.convert_to_tensor(variable)), _norm(direction)
        some = (own > 0) & (length > 0)
        trust = ops.where(some, own / ops.where(some, length, 1.0), 1.0)
        return variable.assign_sub(learning_rate * trust * direction)


@compat.register
class Lion(_Moments):
    """The sign of a mean of gradients (2302.06675), with decoupled weight decay:

        w     = w - r * (sign(beta_1 * mean + (1 - beta_1) * g) + weight_decay * w)
        mean  = beta_2 * mean + (1 - beta_2) * g

    Args:
        beta_1, beta_2: in [0, 1).
        learning_rate, weight_decay, **kwargs: see `base.Optimizer`. The rate is 3 to 10 times smaller, the decay as
            much larger than AdamW's.

    Raises:
        ValueError: for values out of range.
    """

    slots = {"mean": "zeros"}
    rule = "lion"

    def __init__(
        self, learning_rate: Any, beta_1: float = 0.9, beta_2: float = 0.99, name: str = "Lion", **kwargs: Any
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, name, **kwargs)

    def update(self, variable: Any, gradient: Any, learning_rate: Any, mean: Any) -> Any:
        direction = ops.sign(self.beta_1 * mean + (1 - self.beta_1) * gradient)
        mean.assign(self.beta_2 * mean + (1 - self.beta_2) * gradient)
        return variable.assign_sub(learning_rate * self.decayed(variable, direction))

    def numbers(self, learning_rate: Any) -> Any:
        return (learning_rate, *self.shares())


def _norm(x):
    return ops.sqrt(ops.sum(ops.square(x)))


def _check_share(name, value):
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def of_keras(name: str, learning_rate: Any, weight_decay: float = 0.0, **arguments: Any) -> Any:
    """One of Keras' own optimizers with its defaults, as the class `name` in `keras.optimizers` (in older generations
    those of `keras.optimizers.legacy`), to which `weight_decay` is added as L2 in the gradient.

    Args:
        learning_rate: float or `LearningRateSchedule`.
        weight_decay: coefficient; scales and shifts of norms do not decay.
        **arguments: `accumulation`, `guard` and `clip_norm`, see `compat.Optimizer`.

    Raises:
        ValueError: for a name that is none, telling those that are; for Nadam of tf-keras with `accumulation` or
            `guard="skip"`.
    """
    if name not in _OF_KERAS:
        raise ValueError(f"this Keras has no optimizer {name!r}; it has {', '.join(sorted(_OF_KERAS))}")
    return _OF_KERAS[name](learning_rate, weight_decay, **arguments)


def _penalised(weight_decay, variable, gradient):
    if not weight_decay or own_name(variable) in ("gamma", "beta"):
        return gradient
    return gradient + weight_decay * ops.cast(ops.convert_to_tensor(variable), gradient.dtype)


# Made with the module, so that they are known to Keras when it loads a model.
_OF_KERAS = {
    name: compat.keras_optimizer(kind, f"Keras{name}", _penalised) for name, kind in compat.keras_optimizers().items()
}
