"""keras.applications' EfficientNet. Options: `model`, `dtype`, `threads`, `multiply_adds` at a size as a dict.

A training step is that of `fit`: forward, cross-entropy, backward and SGD with momentum.
"""

import json
import sys

from g16net.benchmark import contenders


def main(options):
    from g16net.run.start import start_tensorflow

    start_tensorflow()
    import tensorflow as tf
    from tensorflow import keras

    from g16net import compat

    tf.config.threading.set_intra_op_parallelism_threads(options["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(options["threads"])
    classes = options["num_classes"]

    def make(task, size, batch):
        with compat.policy("mixed_bfloat16" if options["dtype"] == "bfloat16" else "float32"):
            model = getattr(keras.applications, options["model"])(
                weights=None, classes=classes, input_shape=(size, size, 3), classifier_activation=None
            )
        images = tf.random.uniform([batch, size, size, 3], 0, 255)
        macs = options["multiply_adds"][str(size)]
        if task == "infer":
            call = tf.function(lambda x: model(x, training=False))
            return contenders.Work(lambda: call(images), batch, {"multiply_adds": macs}, memory=contenders.peak_tensors)
        model.compile(
            keras.optimizers.SGD(1e-5, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        data = tf.data.Dataset.from_tensors((images, tf.random.uniform([batch], 0, classes, tf.int32))).repeat()
        model.fit(data, steps_per_epoch=1, verbose=0)
        batches, step = iter(data), model.train_function
        return contenders.Work(
            lambda: step(batches), batch, {"multiply_adds": 3 * macs}, memory=contenders.peak_tensors
        )

    contenders.serve(make)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
