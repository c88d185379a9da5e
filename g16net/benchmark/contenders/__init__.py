"""Those whose speed `--mode=benchmark` compares, each in a process of its own: TensorFlow and torch do not share one
well, and memory can be told apart only so. A process lives through the benchmark and works when it is its turn.

`python -m g16net.benchmark.contenders.<module> JSON` with the module's options reads orders from stdin, a line of JSON
each, and answers each with a line on stdout. An order is a cell, {"task", "size", "batch"}, with "do":

- "prepare": makes what the cell needs, warms it up, and answers with facts on it, `peak_memory` among them;
- "time": works for "seconds" and answers with `seconds`, `cpu_seconds` and `images`;
- "layers": answers with the seconds of one step by kind of layer, or {} where that is not to be had.
"""

import ctypes
import json
import os
import resource
import sys
import time
import traceback
from typing import Any, Callable, Dict, NamedTuple, Optional


class Work(NamedTuple):
    """What a cell does: `step()` works on `images` images. A device may still work when it returns: see `settle`."""

    step: Callable[[], Any]
    images: int
    facts: Dict[str, Any]
    layers: Optional[Callable[[], Dict[str, float]]] = None
    extra: Optional[Callable[[], Dict[str, float]]] = None  # further figures of a turn; called before and after it
    memory: Optional[Callable[[Callable[[], Any]], Optional[int]]] = None  # of a step; None: `peak_memory`
    release: Optional[Callable[[], Any]] = None  # gives back what an accelerator keeps between turns


def serve(make):
    """Answers orders until stdin ends. `make(task, size, batch)` gives the `Work` of a cell, which is kept."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    cells = {}
    for line in sys.stdin:
        order = json.loads(line)
        cell = order["task"], order["size"], order["batch"]
        try:
            if order["do"] == "prepare":
                cells[cell] = make(*cell)
                work = cells[cell]
                answer = dict(work.facts, peak_memory=(work.memory or peak_memory)(work.step))
            elif order["do"] == "layers":
                answer = cells[cell].layers() if cells[cell].layers else {}
            else:
                answer = timed(cells[cell], order["seconds"])
        except Exception as error:  # the other side tells the user
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        trim()
        if cell in cells and cells[cell].release:
            cells[cell].release()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # libraries take their time to leave


def timed(work, seconds):
    """Steps for about `seconds`, two at least, after one that is not counted."""
    settle(work.step())
    before = work.extra() if work.extra else {}
    cpu, started, steps = time.process_time(), time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - started < seconds:
        result = work.step()
        steps += 1
    settle(result)
    spent = time.perf_counter() - started
    answer = {"seconds": spent, "cpu_seconds": time.process_time() - cpu, "images": steps * work.images}
    return dict(answer, **{name: value - before[name] for name, value in (work.extra() if work.extra else {}).items()})


def settle(result):
    """Waits until a step's `result`, tensors of TensorFlow, torch or JAX in any nest, is there: reads a number of the
    last one.

    On an accelerator a step returns before it is done; the steps before it are done when the last one is.
    """
    while isinstance(result, (tuple, list, dict)) and result:
        result = list(result.values() if isinstance(result, dict) else result)[-1]
    if hasattr(result, "numpy") or hasattr(result, "block_until_ready"):
        float(result[(0,) * len(result.shape)])


def fastest(forms, seconds=1.0):
    """`(name, rates)`: the form with the most images per second, by two turns of each. `forms`: {name: Work}."""
    rates = {name: 0.0 for name in forms}
    for _ in range(2 if len(forms) > 1 else 0):
        for name, work in forms.items():
            turn = timed(work, seconds)
            rates[name] = max(rates[name], round(turn["images"] / turn["seconds"], 2))
    return max(rates, key=rates.get), rates


def trim():
    """Gives freed memory back to the system, so that what a process holds is what it uses."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library than glibc
        pass


def peak_memory(step, steps=2):
    """Bytes that `step` needs on top of what the process holds between steps: model, optimizer state, batch.

    The most resident memory during two steps, after two that warm up, less that before. Linux can count the most again
    from now on; elsewhere it is that of the whole life of the process, and None where it does not grow.
    """
    for _ in range(2):
        step()
    trim()
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        resident = _status("VmRSS")
        for _ in range(steps):
            step()
        return max(_status("VmHWM") - resident, 0)
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        for _ in range(steps):
            step()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before or None


def peak_tensors(step, steps=2):
    """As `peak_memory`, by the books of TensorFlow's allocator, which returns nothing to the system that could be seen.

    It has none on a CPU without oneDNN, where memory is the system's. On a CPU with it, tensors up to 256 KiB are not
    in the books: the figure is for networks at their usual sizes.
    """
    import tensorflow as tf

    device = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
    for _ in range(2):
        step()
    try:
        tf.config.experimental.reset_memory_stats(device)
        held = tf.config.experimental.get_memory_info(device)["current"]
    except (AttributeError, ValueError, tf.errors.OpError):  # TensorFlow 2.6 has the second for GPUs only
        return peak_memory(step, steps)
    for _ in range(steps):
        step()
    return tf.config.experimental.get_memory_info(device)["peak"] - held


def _status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
