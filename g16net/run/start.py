"""Starts TensorFlow quietly."""

import importlib
import os
import sys
import tempfile
from typing import Sequence

from g16net.errors import UserError
from g16net.run.allocator import keep_memory


def start_tensorflow(modules: Sequence[str] = (), devices: bool = True) -> None:
    """Imports TensorFlow, and `modules`, and finds its devices without its start-up chatter, which no log level hushes
    since 2.17.

    UserError where TensorFlow is missing, or Keras is set to compute with another backend.
    """
    keep_memory()  # before there are threads
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            try:
                from g16net import compat

                compat.need_tensorflow("launch.py and the modes of g16net")
            except ImportError as error:
                raise UserError(str(error)) from error
            import tensorflow as tf

            for module in modules:
                importlib.import_module(module)
            if devices:
                tf.config.list_physical_devices()
            tf.get_logger().setLevel("ERROR")  # its hints are for the authors of programs, not for their users
        except UserError:
            raise
        except BaseException:
            chatter.seek(0)
            os.write(terminal, chatter.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
