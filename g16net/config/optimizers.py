"""The optimizers of a run, a row each, with what is derived where a field is left open. No TensorFlow."""

from typing import Any, Dict, NamedTuple, Optional


class Rule(NamedTuple):
    """What None means for an optimizer's fields.

    per_image: learning rate for each image of the global batch; None: it must be given.
    decay: share kept of the mean square (or, in lion, of the mean); None: 1 - 2^-14 x global batch.
    epsilon: see `optim.epsilon`; weight_decay: see `optim.weight_decay`.
    """

    per_image: Optional[float]
    decay: Optional[float]
    epsilon: float
    weight_decay: float


# RMSProp's is the paper's. The others start from what their authors, timm and Keras take: SGD 0.1 for 256 images, AdamW
# 1e-3 for 1,024 and LAMB 5e-3 for 2,048 (timm), Lion a fifth of AdamW's rate with five times its decay (2302.06675).
OPTIMIZERS = {
    "rmsprop": Rule(2.0**-14, None, 1e-3, 1e-5),
    "sgd": Rule(0.1 / 256, 0.0, 1e-3, 1e-5),
    "adamw": Rule(1e-3 / 1024, 0.999, 1e-7, 0.05),
    "lamb": Rule(5e-3 / 2048, 0.999, 1e-6, 0.02),
    "lion": Rule(2e-4 / 1024, 0.99, 1e-7, 0.25),
}
# The fields whose numbers suit one optimizer alone, of training and of fine-tuning.
OWN = {"optim": ("learning_rate", "decay", "epsilon", "weight_decay"), "finetune": ("learning_rate", "decay")}
RATE_PER_IMAGE = 2.0**-14  # learning rate, and 1 - decay of the mean square, for each image of the global batch
FINETUNE_FACTOR = 8  # times the rate of training: 2^-11 for each image with RMSProp
KERAS = "keras:"  # begins the name of one of Keras' own
KERAS_RULE = Rule(None, 0.0, 1e-3, 0.0)


def known(name: str) -> bool:
    """Whether `name` is a row of `OPTIMIZERS`, or says that it is one of Keras'."""
    return name in OPTIMIZERS or name.startswith(KERAS) and name[len(KERAS) :].isidentifier()


def rule(name: str) -> Rule:
    """The row of the optimizer called `name`."""
    return OPTIMIZERS.get(name, KERAS_RULE)


def chosen(config: Any) -> Dict[str, str]:
    """The names of the optimizers of training and of fine-tuning, by section."""
    return {"optim": config.optim.name, "finetune": config.finetune.optimizer or config.optim.name}


def finetuning(config: Any) -> Dict[str, Optional[float]]:
    """The numbers that fine-tuning's optimizer has for `finetune.global_batch` where they are left open; None: it must
    be given. One of Keras' keeps its rate of training."""
    names = chosen(config)
    chosen_rule, batch = rule(names["finetune"]), config.finetune.global_batch
    same = config.optim.learning_rate if names["finetune"] == names["optim"] else None
    by_batch = max(1 - RATE_PER_IMAGE * batch, 0.0)
    return {
        "learning_rate": same if chosen_rule.per_image is None else FINETUNE_FACTOR * chosen_rule.per_image * batch,
        "decay": by_batch if chosen_rule.decay is None else chosen_rule.decay,
    }
