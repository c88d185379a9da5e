"""The README's Python block, and the SavedModel's of the serving page, run as they stand, in one folder."""

import os

import pages
import pytest

from g16net import compat, models
from g16net.export import folding, saved_model


@pytest.mark.run
@pytest.mark.once
@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
def test_blocks_run(tmp_path, monkeypatch):
    scripts = [block.text for block in pages.blocks("README.md") if block.language == "python"]
    assert len(scripts) == 1
    scripts += [block.text for block in pages.blocks("docs/serving.md") if "test_readme" in block.mark]
    assert len(scripts) == 2
    monkeypatch.chdir(tmp_path)
    model = models.create("efficientnet_g16_nano_ln_pn", num_classes=10)
    saved_model.save("saved_model", folding.fold(model), [str(i) for i in range(10)], {"size": 32})
    for script in scripts:
        exec(script, {"__name__": "__main__"})
    assert os.path.exists("digits.keras")
