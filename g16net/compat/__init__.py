"""What differs between the Keras generations, and between TensorFlow's versions, in one place.

g16net runs on Keras 2.6 (the IPU SDK), on tf-keras and on Keras 3 with TensorFlow below. Layers and models use the
API common to all three and take the few things that differ from here.
"""

from g16net.compat.versions import KERAS3, KERAS_VERSION, TF_VERSION  # isort: skip  says first what is missing
from g16net.compat.callbacks import follow_directions
from g16net.compat.data import (
    ignore_errors,
    reason,
    set_deterministic,
    single_element,
)
from g16net.compat.gradients import note_finite
from g16net.compat.graphs import (
    as_written,
    compiled_device,
    in_training,
    on_cpu,
    outlined,
)
from g16net.compat.layers import (
    Random,
    add_moving_average,
    add_weight,
    compute_dtype,
    name_of,
    output_spec,
    policy,
    register,
    serialized,
    set_seed,
)
from g16net.compat.optimizers import Optimizer, keras_optimizer, keras_optimizers, scale_loss
from g16net.compat.state import ACCUMULATORS, optimizer_state, read_optimizer_state, recount, write_optimizer_state

__all__ = [
    "ACCUMULATORS",
    "KERAS3",
    "KERAS_VERSION",
    "Optimizer",
    "Random",
    "TF_VERSION",
    "add_moving_average",
    "add_weight",
    "as_written",
    "compiled_device",
    "compute_dtype",
    "follow_directions",
    "ignore_errors",
    "in_training",
    "keras_optimizer",
    "keras_optimizers",
    "name_of",
    "note_finite",
    "on_cpu",
    "optimizer_state",
    "outlined",
    "output_spec",
    "policy",
    "read_optimizer_state",
    "reason",
    "recount",
    "register",
    "scale_loss",
    "serialized",
    "set_deterministic",
    "set_seed",
    "single_element",
    "write_optimizer_state",
]
