"""`.keras` files that tf-keras and Keras 3 both read.

The two write the same weights and describe the same layers in different words: the module of the model's class, dtype
policies, the tensors between layers. Here a description becomes the one that both accept, Keras 2's names for built-in
classes and calls, which Keras 3 reads for the sake of older files. Classes of this package need `import g16net` and no
more. Needs neither TensorFlow nor Keras.
"""

import inspect
import json
import os
import sys
import tempfile
import zipfile
from typing import Any, Dict, List, Optional, Sequence

CLASS_NAMES = "class_names.json"  # beside what Keras reads

# What one generation writes for its own classes and the other does not know, where it is None or False.
UNKNOWN = ("input_axes", "output_axes", "quantization_config", "activity_regularizer", "optional")
_IMAGES = "CenterCrop RandomBrightness RandomCrop RandomFlip RandomRotation RandomTranslation RandomZoom"
# Keras' layers that Keras 3 calls with training=True by default.
AUGMENTATIONS = (*_IMAGES.split(), "RandomContrast", "Resizing")
_RECURRENT = ("RNN", "SimpleRNN", "LSTM", "GRU")
_CONV_RECURRENT = ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
_RESIZING = {"pad_to_aspect_ratio": False, "fill_mode": "constant", "fill_value": 0.0, "antialias": False}
# The arguments that the own layers of one generation have and those of the other have not, with their defaults.
ONLY_KERAS3: Dict[str, Dict[str, Any]] = {
    "LayerNormalization": {"rms_scaling": False},
    "Resizing": {"data_format": "channels_last", **_RESIZING},
    "RandomContrast": {"data_format": "channels_last", "value_range": [0, 255]},
    **{kind: {"data_format": "channels_last"} for kind in (*_IMAGES.split(), "ZeroPadding1D")},
    **{kind: {"zero_output_for_mask": False} for kind in _RECURRENT},
    **{kind: {"zero_output_for_mask": False, "seed": None} for kind in _CONV_RECURRENT},
    **{f"{kind}Lookup": {"vocabulary_size": None, "oov_method": "floormod", "salt": None}
       for kind in ("Integer", "String")},
}  # fmt: skip
ONLY_KERAS2: Dict[str, Dict[str, Any]] = {
    **{f"Conv{rank}DTranspose": {"groups": 1} for rank in (1, 2, 3)},
    **{f"{kind}Conv{rank}D": {"groups": 1} for kind in ("Depthwise", "Separable") for rank in (1, 2)},
    **{f"SpatialDropout{rank}D": {"noise_shape": None} for rank in (1, 2, 3)},
    **{kind: {"time_major": False} for kind in (*_RECURRENT, *_CONV_RECURRENT)},
}
# What Keras 2 writes for its own layers though nothing depends on it; Keras 3 does not know it.
IN_VAIN = {
    "Discretization": ("trainable",),
    "Embedding": ("input_length",),
    **{f"SeparableConv{rank}D": tuple(f"kernel_{part}" for part in ("initializer", "regularizer", "constraint"))
       for rank in (1, 2)},
    **{f"SpatialDropout{rank}D": ("trainable",) for rank in (1, 2, 3)},
}  # fmt: skip
# Keras 2's words, which Keras 3 reads too, for its own.
RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
OPERATIONS = ("keras.src.ops", "keras.ops")  # modules of what Keras 3 makes of operators: x + 1, x[:, 0]
# Own layers of which each generation's description is an error in the other.
OF_ONE_GENERATION = (
    "MultiHeadAttention",
    "LocallyConnected1D",
    "LocallyConnected2D",
    "DenseFeatures",
    "TFOpLambda",
    "SlicingOpLambda",
)


def save(model: Any, path: str, class_names: Optional[Sequence[str]] = None) -> None:
    """`model.save(path)` for both generations: layers and weights, without what the model was compiled with.

    `class_names`, one per logit, go into the file, where Keras does not look and `class_names` finds them.

    Raises:
        ValueError: for a path that does not end with `.keras`, and for what only one generation can describe.
    """
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(path))) as folder:
        written = os.path.join(folder, "model.keras")
        model.save(written)
        convert(written, path)
    if class_names is not None:
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(CLASS_NAMES, json.dumps(list(class_names)))


def class_names(path: str) -> Optional[List[str]]:
    """The class names that `save` put into the file at `path`; None where it has none."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read(CLASS_NAMES)) if CLASS_NAMES in file.namelist() else None


def convert(source: str, path: str) -> None:
    """Writes the `.keras` file `source` of either generation to `path` (may be the same) in the form that both read.

    Raises:
        ValueError: as `save`, and where `source` is no `.keras` file.
    """
    if not str(path).endswith(".keras"):
        raise ValueError(f"Keras reads its files by their ending; {str(path)!r} should end with .keras")
    if not zipfile.is_zipfile(source):
        raise ValueError(f"{source} is no .keras file; give one that model.save('NAME.keras') wrote")
    partial = f"{path}.partial"
    try:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(partial, "w") as new:
            for entry in old.infolist():
                data = old.read(entry)
                if entry.filename == "config.json":
                    described = json.loads(data)
                    described.pop("compile_config", None)
                    data = json.dumps(both(described)).encode()
                new.writestr(entry.filename, data)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def both(described: Any) -> Any:
    """The description of a Keras object, as in a file's `config.json`, in the words of both generations; ValueError
    where there are none."""
    if isinstance(described, list):
        return [both(part) for part in described]
    if not isinstance(described, dict):
        return described
    if "class_name" not in described or not isinstance(described.get("config"), dict):
        return {key: both(part) for key, part in described.items()}
    if described["class_name"] == "__keras_tensor__":
        raise ValueError(
            "a layer takes a tensor in another place than its first argument, which tf-keras and Keras 3 describe in "
            "different ways; save such a model in the generation that reads it"
        )
    kind, form = described["class_name"], dict(described["config"])
    if kind in ("DTypePolicy", "Policy"):
        return form["name"]
    # How layers are built follows from the model, and objects that several share become equal ones.
    left_out = ("build_config", "shared_object_id")
    if kind == "InputLayer" and "batch_shape" in form:
        form["batch_input_shape"] = form.pop("batch_shape")
    if kind in ("Functional", "Model") and "input_layers" in form:
        described = dict(described, module="keras", class_name="Model", registered_name=None)
        for key in ("input_layers", "output_layers"):
            alone = isinstance(form[key], list) and isinstance(form[key][0], str)
            form[key] = [form[key]] if alone else form[key]  # several are a list or dict
        form["layers"] = [dict(layer, inbound_nodes=[_call(node, layer) for node in layer["inbound_nodes"]])
                          for layer in form["layers"]]  # fmt: skip
    form = {key: part for key, part in form.items() if key not in UNKNOWN or part not in (None, False)}
    form.pop("rng_type", None)  # of tf-keras: how a layer draws, which is no part of what it computes
    operation = str(described.get("module")).startswith(OPERATIONS)
    if operation or kind in OF_ONE_GENERATION and (_of_keras(described) or kind.endswith("OpLambda")):
        raise ValueError(
            f"the {kind} {form.get('name')!r} is described by tf-keras and Keras 3 in ways that exclude each other; "
            "save such a model in the generation that reads it"
        )
    if _of_keras(described):
        form = _common_words(kind, form)
    return {key: both(part) for key, part in dict(described, config=form).items() if key not in left_out}


def _of_keras(described):
    return not described.get("registered_name")


def _common_words(kind, form):
    """The arguments `form` of Keras' own class `kind` without those that one generation alone has; ValueError where
    one of them has another value than its default."""
    name = form.get("name")
    if "hard_sigmoid" in (form.get("activation"), form.get("recurrent_activation")):
        raise ValueError(
            f"hard_sigmoid, of the {kind} {name!r}, is another function in tf-keras than in Keras 3; take another "
            "activation, or write the model by its own save for its own generation alone"
        )
    form = {RENAMED.get(kind, {}).get(key, key): value for key, value in form.items()}
    for table, other, own in ((ONLY_KERAS3, "tf-keras", "Keras 3"), (ONLY_KERAS2, "Keras 3", "tf-keras")):
        for key, default in table.get(kind, {}).items():
            value = form.pop(key, default)
            if value != default:
                raise ValueError(
                    f"{key}={value!r} of the {kind} {name!r} is unknown to {other}; leave it at {default!r}, or write "
                    f"the model by its own save for {own} alone"
                )
    if kind == "BatchNormalization" and isinstance(form.get("axis"), list):
        if len(form["axis"]) > 1:
            raise ValueError(
                f"axis={form['axis']} of the BatchNormalization {name!r} is unknown to Keras 3, which takes one axis; "
                "write the model by its own save for tf-keras alone"
            )
        (form["axis"],) = form["axis"]
    if kind != "InputLayer":  # elsewhere the same as that of the input before the layer
        form.pop("batch_input_shape", None)
    return {key: value for key, value in form.items() if key not in IN_VAIN.get(kind, ())}


def _call(node, layer):
    """A call of the described `layer` as Keras 2 writes it, `[[layer, call, output, arguments], ...]` by tensor."""
    if layer["class_name"] in ("Functional", "Model", "Sequential"):
        raise ValueError(
            f"the {layer['class_name']} {layer['name']!r} is a model within the model, and tf-keras and Keras 3 number "
            "the calls of such ones differently; apply its layers one by one, or save the model in the generation that "
            "reads it"
        )
    if not isinstance(node, dict):
        return node
    if len(node["args"]) != 1:
        return node  # `both` refuses the tensors that are left
    (given,) = node["args"]
    tensors = given if isinstance(given, list) else [given]
    arguments = dict(node["kwargs"])
    # Keras 3 notes a layer's default, too, and follows the model's call all the same. tf-keras would follow the note:
    # augmentations would be on in testing, and dropout off in training.
    if arguments.get("training", None) is not None and arguments["training"] == _default_training(layer):
        del arguments["training"]
    return [[*tensor["config"]["keras_history"], arguments] for tensor in tensors]


def _default_training(layer):
    """What the described layer takes for `training` where it is not told; None for classes that nobody here knows."""
    if _of_keras(layer):
        return layer["class_name"] in AUGMENTATIONS
    for name in ("keras", "tf_keras"):
        saving = getattr(sys.modules.get(name), "saving", None)
        found = saving and saving.get_registered_object(layer["registered_name"])
        if found:
            parameter = inspect.signature(found.call).parameters.get("training")
            return parameter and parameter.default
    return None
