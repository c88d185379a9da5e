"""The README's Python blocks run as they stand, in order, in one folder."""

import os
import re
import subprocess
import sys

import pytest

from g16net import compat

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def blocks():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return re.findall(r"^```python\n(.*?)^```", file.read(), re.DOTALL | re.MULTILINE)


@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
def test_blocks_run(tmp_path):
    scripts = blocks()
    assert len(scripts) == 3
    export = (
        "from g16net import models\nfrom g16net.export import folding, saved_model\n"
        "model = models.create('efficientnet_g16_tiny_ln_pn', num_classes=10)\n"
        "saved_model.save('saved_model', folding.fold(model), [str(i) for i in range(10)], {'size': 32})\n"
    )
    environment = dict(os.environ, PYTHONPATH=ROOT)
    for script in scripts[:2] + [export] + scripts[2:]:
        subprocess.run([sys.executable, "-c", script], check=True, cwd=str(tmp_path), env=environment)
    assert os.path.exists(tmp_path / "digits.keras")
