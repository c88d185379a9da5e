"""A matrix product of `size` rows: the machine's limit for multiply-adds. Options: `dtype`, `threads`.

An "image" is one product.
"""

import json
import sys

from g16net.benchmark import contenders


def main(options):
    from g16net.run.start import start_tensorflow

    start_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(options["threads"])

    def make(task, size, batch):
        a, b = (tf.cast(tf.random.normal([size, size]), options["dtype"]) for _ in range(2))
        product = tf.function(tf.linalg.matmul)
        return contenders.Work(lambda: product(a, b), 1, {"multiply_adds": size**3})

    contenders.serve(make)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
