"""Names under which modules were public before they moved: importing the old one gives the new one.

Scripts and experiment files of users go on working. A row goes when a release that breaks names says so.
"""

import importlib
import importlib.abc
import importlib.util
import sys

MOVED = {
    "g16net.assemble": "g16net.run.assemble",
    "g16net.channels": "g16net.diagnostics.channels",
    "g16net.checkpoint": "g16net.run.checkpoint",
    "g16net.evaluate": "g16net.training.evaluate",
    "g16net.experiments": "g16net.config.experiments",
    "g16net.finetune": "g16net.training.finetune",
    "g16net.foreign_weights": "g16net.weights.detect",
    "g16net.inspect_data": "g16net.diagnostics.inspect_data",
    "g16net.models.convert": "g16net.weights.keras_applications",
    "g16net.models.costs": "g16net.costs.counts",
    "g16net.models.roofline": "g16net.costs.roofline",
    "g16net.models.tf1_weights": "g16net.weights.tf1",
    "g16net.models.timm_weights": "g16net.weights.timm",
    "g16net.predict": "g16net.training.predict",
    "g16net.recipe": "g16net.config.recipe",
    "g16net.records": "g16net.run.records",
    "g16net.train": "g16net.training.train",
    "g16net.warm_start": "g16net.training.warm_start",
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `MOVED` under their old names: each is the very module of the new name."""

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in MOVED else None

    def create_module(self, spec):
        module = importlib.import_module(MOVED[spec.name])
        self._own = module.__spec__, module.__loader__, module.__package__, module.__name__
        return module

    def exec_module(self, module):
        # What the import wrote into the module is its old name: it keeps its own.
        module.__spec__, module.__loader__, module.__package__, module.__name__ = self._own


def install():
    """Lets old names be imported."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
