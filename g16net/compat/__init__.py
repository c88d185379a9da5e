"""What differs between the Keras generations, their backends, and TensorFlow's versions, in one place.

g16net runs on Keras 2.6 (the IPU SDK), on tf-keras and on Keras 3 with TensorFlow below; layers, models, losses,
metrics and the optimizer also on Keras 3 with JAX or PyTorch. They use the API common to all and take the few things
that differ from here: `keras` and `tf` (see `versions`), and tensor operations as `ops`.
"""

from g16net.compat.versions import (  # isort: skip  says first what is missing
    BACKEND,
    KERAS3,
    KERAS_VERSION,
    TF_VERSION,
    keras,
    need_tensorflow,
    tf,
)
from g16net.compat.callbacks import accumulation, follow_directions, steps_per_execution
from g16net.compat.graphs import (
    as_written,
    compiled_device,
    compiling,
    in_training,
    on_cpu,
    outlined,
)
from g16net.compat.layers import (
    Random,
    add_moving_average,
    add_weight,
    compute_dtype,
    fixed_variable,
    floating,
    name_of,
    names_of,
    output_spec,
    policy,
    register,
    serialized,
    set_seed,
)
from g16net.compat.optimizers import Optimizer, keras_optimizer, keras_optimizers, scale_loss
from g16net.compat.state import (
    ACCUMULATORS,
    LATE,
    optimizer_state,
    read_optimizer_state,
    recount,
    write_optimizer_state,
)

if BACKEND == "tensorflow":
    from g16net.compat import ops_tensorflow as ops
    from g16net.compat.data import ignore_errors, numpy_function, reason, set_deterministic, set_untuned, single_element
    from g16net.compat.gradients import note_finite
else:
    from g16net.compat import ops_keras as ops  # type: ignore[no-redef]

__all__ = [
    "ACCUMULATORS",
    "LATE",
    "BACKEND",
    "KERAS3",
    "KERAS_VERSION",
    "Optimizer",
    "Random",
    "TF_VERSION",
    "accumulation",
    "add_moving_average",
    "add_weight",
    "as_written",
    "compiled_device",
    "compiling",
    "compute_dtype",
    "fixed_variable",
    "floating",
    "follow_directions",
    "ignore_errors",
    "in_training",
    "keras",
    "keras_optimizer",
    "keras_optimizers",
    "name_of",
    "names_of",
    "need_tensorflow",
    "note_finite",
    "numpy_function",
    "on_cpu",
    "ops",
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
    "set_untuned",
    "set_seed",
    "single_element",
    "steps_per_execution",
    "tf",
    "write_optimizer_state",
]
