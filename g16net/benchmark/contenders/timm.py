"""timm's networks on the CPU. Options: `model`, `dtype`, `threads`, `compile`, `multiply_adds` at a size as a dict.

A cell tries the forms that a user of timm can choose from, and the fastest counts: contiguous or channels_last memory,
with `compile` torch.compile on top; in bfloat16 autocast, and at inference weights cast once too. A training step is
forward, cross-entropy, backward and SGD with momentum, the cheapest of timm's optimizers.
"""

import contextlib
import gc
import itertools
import json
import sys

from g16net.benchmark import contenders
from g16net.run.allocator import keep_memory


def main(options):
    keep_memory()  # as TensorFlow's contenders
    import timm
    import torch

    torch.set_num_threads(options["threads"])  # else OMP_NUM_THREADS would hold, which binds no other contender
    low = options["dtype"] == "bfloat16"

    def work(task, size, batch, memory, cast, compiled):
        model = timm.create_model(options["model"], num_classes=options["num_classes"])
        model.train(task == "train")
        images = torch.rand(batch, 3, size, size)
        if memory == "channels_last":
            model, images = (x.to(memory_format=torch.channels_last) for x in (model, images))
        if cast == "cast":
            model, images = model.to(torch.bfloat16), images.to(torch.bfloat16)
        run = model
        if compiled:  # at inference with the weights as constants, folded and laid out once
            run = torch.compile(model, options={"freezing": True} if task == "infer" else None)

        def precision():
            return torch.autocast("cpu", torch.bfloat16) if cast == "autocast" else contextlib.nullcontext()

        def infer():
            with torch.inference_mode(), precision():
                run(images)

        labels = torch.randint(options["num_classes"], (batch,))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-5)
        loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

        def train():
            with precision():
                value = loss(run(images), labels)
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return contenders.Work(train if task == "train" else infer, batch, {})

    def make(task, size, batch):
        casts = ["float32"] if not low else ["autocast"] + (["cast"] if task == "infer" else [])
        compiled = [False, True] if options["compile"] else [False]
        forms, failed = {}, {}
        for memory, cast, compile_ in itertools.product(("contiguous", "channels_last"), casts, compiled):
            name = " ".join([memory] + ([cast] if low else []) + (["compiled"] if compile_ else []))
            try:
                forms[name] = work(task, size, batch, memory, cast, compile_)
                forms[name].step()
            except Exception as error:
                if not compile_:
                    raise
                del forms[name]
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        name, rates = contenders.fastest(forms)
        chosen = forms[name]
        forms.clear()
        gc.collect()
        factor = 3 if task == "train" else 1
        facts = {"form": name, "forms": rates, "multiply_adds": factor * options["multiply_adds"][str(size)]}
        return chosen._replace(facts=dict(facts, **({"failed_forms": failed} if failed else {})))

    contenders.serve(make)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
