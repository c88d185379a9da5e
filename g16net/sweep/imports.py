"""Imports, and does nothing with, what a run needs: the process of a sweep from which those of its runs are forked.

TensorFlow starts its threads and opens devices at its first operation, which comes after the fork.
"""

from g16net.run.start import start_tensorflow

start_tensorflow(
    ["g16net.training.train", "g16net.training.finetune", "g16net.training.evaluate", "g16net.export"], devices=False
)
