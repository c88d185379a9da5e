"""`.keras` files that tf-keras and Keras 3 both read.

The two write the same weights and describe the same layers in different words: the module of the model's class, dtype
policies, the tensors between layers. Here a description becomes the one that both accept, Keras 2's names for built-in
classes and calls, which Keras 3 reads for the sake of older files. Classes of this package need `import g16net` and no
more. Needs neither TensorFlow nor Keras.
"""

import json
import os
import tempfile
import zipfile
from typing import Any, Dict, List, Optional, Sequence

CLASS_NAMES = "class_names.json"  # beside what Keras reads

# What one generation writes for its own classes and the other does not know, where it is None or False.
UNKNOWN = ("input_axes", "output_axes", "quantization_config", "activity_regularizer", "optional")
# The arguments that Keras 3's own layers have and tf-keras' have not, with their defaults.
_IMAGES = "CenterCrop RandomBrightness RandomCrop RandomFlip RandomRotation RandomTranslation RandomZoom ZeroPadding1D"
_RESIZING = {"pad_to_aspect_ratio": False, "fill_mode": "constant", "fill_value": 0.0, "antialias": False}
ONLY_KERAS3: Dict[str, Dict[str, Any]] = {
    "LayerNormalization": {"rms_scaling": False},
    "Resizing": {"data_format": "channels_last", **_RESIZING},
    "RandomContrast": {"data_format": "channels_last", "value_range": [0, 255]},
    **{kind: {"data_format": "channels_last"} for kind in _IMAGES.split()},
    **{kind: {"zero_output_for_mask": False} for kind in ("RNN", "SimpleRNN", "LSTM", "GRU")},
    **{f"ConvLSTM{rank}D": {"zero_output_for_mask": False, "seed": None} for rank in (1, 2, 3)},
    **{f"{kind}Lookup": {"vocabulary_size": None, "oov_method": "floormod", "salt": None}
       for kind in ("Integer", "String")},
}  # fmt: skip


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
        form["layers"] = [dict(layer, inbound_nodes=[_call(node) for node in layer["inbound_nodes"]])
                          for layer in form["layers"]]  # fmt: skip
    form = {key: part for key, part in form.items() if key not in UNKNOWN or part not in (None, False)}
    form.pop("rng_type", None)  # of tf-keras: how a layer draws, which is no part of what it computes
    of_keras = not described.get("registered_name")
    for key, default in ONLY_KERAS3.get(kind, {}).items() if of_keras else ():
        if form.pop(key, default) != default:
            raise ValueError(
                f"{key}={described['config'][key]!r} of the {kind} {form.get('name')!r} is unknown to tf-keras; leave "
                f"it at {default!r}, or write the model by its own save for Keras 3 alone"
            )
    return {key: both(part) for key, part in dict(described, config=form).items() if key not in left_out}


def _call(node):
    """A layer's call as Keras 2 writes it, `[[layer, call, output, arguments], ...]` of each tensor."""
    if not isinstance(node, dict):
        return node
    if len(node["args"]) != 1:
        return node  # `both` refuses the tensors that are left
    (given,) = node["args"]
    tensors = given if isinstance(given, list) else [given]
    # Keras 3 notes what augmentations do by default, and follows the model's call; tf-keras would augment test images.
    arguments = {name: value for name, value in node["kwargs"].items() if (name, value) != ("training", True)}
    return [[*tensor["config"]["keras_history"], arguments] for tensor in tensors]
