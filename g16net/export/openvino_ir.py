"""OpenVINO's own files, read from the ONNX graph in the form that OpenVINO runs fastest (`onnx_graph`, `fuses`).

A folder with `model.xml` and `model.bin`. Input and outputs are those of the ONNX file; the class names and the
preprocessing are JSON in the model's runtime information, under `g16net`. OpenVINO reads the ONNX file too, and takes
1.8 times as long for it.
"""

import json
import os
from typing import Any, Dict, List, Sequence

from g16net import extras
from g16net.export import onnx_graph

FILE = "model.xml"


def save(path: str, steps: List[Any], class_names: Sequence[str], preprocessing: Dict[str, Any]) -> None:
    """Writes the new folder `path`; arguments as in `tflite.convert`."""
    openvino = extras.need("openvino", "openvino", "--format=openvino")
    graph = onnx_graph.convert(steps, class_names, preprocessing, fuses=True)
    model = openvino.Core().read_model(graph)
    model.set_rt_info(json.dumps(list(class_names)), ["g16net", "class_names"])
    model.set_rt_info(json.dumps(preprocessing), ["g16net", "preprocessing"])
    os.makedirs(path)
    openvino.save_model(model, os.path.join(path, FILE), compress_to_fp16=False)
