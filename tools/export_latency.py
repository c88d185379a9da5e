"""Bytes and CPU latency of every export format, and of timm's efficientnet_b0_gn in ONNX, in one run.

    python tools/export_latency.py --threads=1 [--size=224] [--rounds=30]

Needs the extras `export` and `peers` (for timm's network, which torch writes to ONNX). All files are of B0 with random
weights; each runtime gets the same number of threads and batches of one image. Rounds go through all files in turn, so
that a disturbance of the machine meets all of them; the median of the rounds' times is shown, with the quartiles.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np  # noqa: E402

PEER = """
import sys, timm, torch
model = timm.create_model("efficientnet_b0_gn").eval()
size = int(sys.argv[2])
torch.onnx.export(model, torch.zeros(1, 3, size, size), sys.argv[1], opset_version=17, dynamo=False, input_names=["x"])
"""


def files(folder, size):
    """`(name, path)` of the exports to time."""
    from g16net.export import folding, onnx_graph, saved_model, tflite
    from g16net.models import efficientnet

    names = [str(i) for i in range(1000)]
    networks = {"G16 LN+PN": dict(norm="ln_pn"), "G1 GN": dict(group_size=1, expand_ratio=6, norm="gn")}
    for title, arguments in networks.items():
        steps = folding.fold(efficientnet.build("B0", seed=1, **arguments))
        path = os.path.join(folder, title.replace(" ", "_"))
        saved_model.save(path, steps, names, {"size": size})
        yield f"{title} SavedModel", path
        images = [np.random.RandomState(i).randint(0, 256, (1, size, size, 3)).astype(np.uint8) for i in range(8)]
        for precision in tflite.PRECISIONS:
            data = tflite.convert(steps, names, {}, precision, images)
            with open(f"{path}_{precision}.tflite", "wb") as file:
                file.write(data)
            yield f"{title} TFLite {precision}", f"{path}_{precision}.tflite"
        with open(f"{path}.onnx", "wb") as file:
            file.write(onnx_graph.convert(steps, names, {}))
        yield f"{title} ONNX", f"{path}.onnx"
    path = os.path.join(folder, "timm.onnx")
    subprocess.run([sys.executable, "-c", PEER, path, str(size)], check=True)
    yield "timm efficientnet_b0_gn ONNX", path


def runner(path, size, threads):
    """A function that runs one image through the file."""
    image = np.random.RandomState(0).randint(0, 256, (1, size, size, 3)).astype(np.uint8)
    if path.endswith(".onnx"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        feed = image if given.type == "tensor(uint8)" else image.transpose(0, 3, 1, 2).astype(np.float32)
        return lambda: session.run(None, {given.name: feed})
    if path.endswith(".tflite"):
        from g16net.export import runners

        serve = runners.tflite_interpreter()(model_path=path, num_threads=threads).get_signature_runner()
        return lambda: serve(images=image)
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    serve, image = loaded.signatures["serving_default"], tf.constant(image)
    return lambda _loaded=loaded: serve(images=image)["logits"].numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    import tensorflow as tf

    from g16net import export

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(files(folder, options.size))
        run = {name: runner(path, options.size, options.threads) for name, path in rows}
        times = {name: [] for name in run}
        for _ in range(options.rounds + 3):
            for name, function in run.items():
                begun = time.perf_counter()
                function()
                times[name].append(1000 * (time.perf_counter() - begun))
        print(f"{'B0 at ' + str(options.size):34} {'bytes':>12} {'median ms':>10} {'quartiles':>16}")
        for name, path in rows:
            low, middle, high = np.percentile(times[name][3:], [25, 50, 75])
            print(f"{name:34} {export.size_of(path):12,} {middle:10.1f} {low:8.1f} {high:7.1f}")


if __name__ == "__main__":
    main()
