"""Makes the package's classes known to Keras, so that `import g16net` is all that loading a saved model needs.

Keras finds classes in a registry, which they enter when their modules are imported. These import TensorFlow, and
`import g16net` alone must not: reports and costs need none, and a program may still choose its generation of Keras. So
they are imported right after Keras is, in whatever order a program imports the two.
"""

import importlib
import sys

# The modules whose classes a saved model may name.
MODULES = (
    "g16net.layers",
    "g16net.optim.losses",
    "g16net.optim.optimizers",
    "g16net.optim.rmsprop",
    "g16net.optim.schedules",
)
# Imports that must have ended: TensorFlow may import Keras in the middle of its own import, and Keras TensorFlow.
AWAITED = ("tensorflow", "keras", "tf_keras", "g16net.compat")


def with_keras():
    """Registers the classes at once where Keras is imported, otherwise as soon as it is."""
    if _keras_is_there():
        register()
    else:
        sys.meta_path.insert(0, _Watch())


def register():
    """Imports the modules of all classes."""
    try:
        for name in MODULES:
            importlib.import_module(name)
    except ImportError:
        pass  # Keras on another backend, say: it is none of our business unless a layer is imported, and that tells


def _keras_is_there():
    return any(name in sys.modules for name in ("keras", "tf_keras"))


class _Watch:
    """Calls `register` at the end of the outermost of the awaited imports that brings Keras. Finds no module itself."""

    def __init__(self):
        self.depth = 0

    def find_spec(self, name, path=None, target=None):
        if name not in AWAITED:
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._then_register(spec.loader.exec_module)
        return spec

    def _then_register(self, execute):
        def exec_module(module):
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if not self.depth and _keras_is_there() and self in sys.meta_path:
                sys.meta_path.remove(self)
                register()

        return exec_module
