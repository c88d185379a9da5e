"""Every path of a run's folder, each once. Pure Python.

WORKDIR/config.json, versions.json      what was asked, and by which versions
        classes.json, data.json         what it was trained on, see `run_data`
        records.jsonl                   a line per epoch; evaluations.jsonl: a line per evaluation
        checkpoints/, tensorboard/      the state of the run; its scalars
        curves.png                      the records as a picture
        MODE.json                       the figures of a mode that has ended
        classes/                        accuracy by class and confusion matrices, as files and as pages
        explain/                        where the network sees the class of each image that it was asked for
        finetune/SIZE/                  a fine-tuning: settings.json, records.jsonl, checkpoints/, finetune.json
        saved_model/, model.onnx, ...   exports; those of fine-tuned weights are in the folder of their size
"""

import os
from typing import List, Union


class Workdir:
    """The paths of the run, or of the fine-tuning, in the folder `path`. Nothing is opened or made."""

    def __init__(self, path: str):
        self.path = os.fspath(path)

    def file(self, *names: Union[str, int]) -> str:
        """The path of a file or folder by its name."""
        return os.path.join(self.path, *map(str, names))

    @property
    def config(self) -> str:
        return self.file("config.json")

    @property
    def versions(self) -> str:
        return self.file("versions.json")

    @property
    def classes(self) -> str:
        return self.file("classes.json")

    @property
    def data(self) -> str:
        return self.file("data.json")

    @property
    def records(self) -> str:
        return self.file("records.jsonl")

    @property
    def evaluations(self) -> str:
        return self.file("evaluations.jsonl")

    @property
    def checkpoints(self) -> str:
        return self.file("checkpoints")

    @property
    def tensorboard(self) -> str:
        return self.file("tensorboard")

    @property
    def curves(self) -> str:
        return self.file("curves.png")

    @property
    def by_class(self) -> str:
        return self.file("classes")

    @property
    def explain(self) -> str:
        return self.file("explain")

    @property
    def settings(self) -> str:
        """What a fine-tuning was asked for."""
        return self.file("settings.json")

    @property
    def lock(self) -> str:
        return self.file(".lock")

    def figures(self, mode: str) -> str:
        """The file with the figures of a mode that has ended."""
        return self.file(f"{mode}.json")

    @property
    def training(self) -> List[str]:
        """What a training writes, and a run that shares it takes over."""
        return [self.checkpoints, self.classes, self.data, self.records]

    @property
    def begun(self) -> bool:
        """Whether a run is there. What ended before its first epoch and checkpoint left nothing, and is none."""
        return any(map(os.path.exists, (self.checkpoints, self.records, self.figures("train"))))

    def finetuning(self, folder: str, size: int) -> "Workdir":
        """The fine-tuning at `size` pixels in the folder that `finetune.folder` names."""
        return Workdir(self.file(folder, size))

    def finetuned_sizes(self, folder: str) -> List[int]:
        """The sizes whose fine-tuning in `folder` is finished, in order."""
        top = self.file(folder)
        names = os.listdir(top) if os.path.isdir(top) else []
        sizes = sorted(int(name) for name in names if name.isdigit())
        return [size for size in sizes if os.path.exists(self.finetuning(folder, size).figures("finetune"))]
