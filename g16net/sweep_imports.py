"""Imports, and does nothing with, what a run needs: the process of a sweep from which those of its runs are forked.

TensorFlow starts its threads and opens devices at its first operation, which comes after the fork.
"""

from g16net import cli

cli.start_tensorflow([module for name, module in cli.MODES.items() if name in cli.RUN_MODES], devices=False)
