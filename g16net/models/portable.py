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
from typing import Any, List, Optional, Sequence

CLASS_NAMES = "class_names.json"  # beside what Keras reads

# What one generation writes for its own classes and the other does not know, at its default.
UNKNOWN = ("input_axes", "output_axes", "quantization_config", "activity_regularizer", "optional")


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
            form[key] = form[key] if isinstance(form[key][0], list) else [form[key]]
        form["layers"] = [dict(layer, inbound_nodes=[_call(node) for node in layer["inbound_nodes"]])
                          for layer in form["layers"]]  # fmt: skip
    form = {key: part for key, part in form.items() if key not in UNKNOWN or part not in (None, False)}
    return {key: both(part) for key, part in dict(described, config=form).items() if key not in left_out}


def _call(node):
    """A layer's call as Keras 2 writes it, `[[layer, call, output, arguments], ...]` of each tensor."""
    if not isinstance(node, dict):
        return node
    if len(node["args"]) != 1:
        return node  # `both` refuses the tensors that are left
    (given,) = node["args"]
    tensors = given if isinstance(given, list) else [given]
    return [[*tensor["config"]["keras_history"], node["kwargs"]] for tensor in tensors]
