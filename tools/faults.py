"""Injects faults into real runs of `launch.py` and prints what each led to: `python tools/faults.py [NAME ...]`.

Every fault ends in weights that are bit-equal to those of a run which nothing interrupted, or in one clear message.
Not a test of the suite: twenty kills take minutes.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
EPOCHS, STEPS = 4, 11


def command(workdir, *options, epochs=EPOCHS, data="digits"):
    return [
        sys.executable, os.path.join(ROOT, "launch.py"), "--experiment=g16_ln_pn:demo,variant=TINY", "--mode=train",
        f"--data={data}", f"--config.run.epochs={epochs}", "--config.run.global_batch=128",
        "--config.schedule.warmup_epochs=0", "--config.runtime.deterministic=true", "--config.checkpoint.every_steps=3",
        f"--workdir={workdir}", *options,
    ]  # fmt: skip


def run(*arguments, **kwargs):
    """`(status, output)` of a run to its end."""
    done = subprocess.run(
        command(*arguments, **kwargs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def start(*arguments, **kwargs):
    return subprocess.Popen(
        command(*arguments, **kwargs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )


def saved(workdir):
    folder = os.path.join(workdir, "checkpoints")
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit()) if os.path.isdir(folder) else []


def wait_for(process, workdir, step):
    """Returns when a checkpoint of `step` or later is there, or the process has ended."""
    while process.poll() is None and (not saved(workdir) or saved(workdir)[-1] < step):
        time.sleep(0.02)


def tensors(workdir):
    import tensorflow as tf

    newest = os.path.join(workdir, "checkpoints", f"{saved(workdir)[-1]:08d}", "state")
    stored = tf.train.load_checkpoint(newest)
    return {name: stored.get_tensor(name).tobytes() for name in stored.get_variable_to_shape_map()}


def same(workdir, whole):
    a, b = tensors(workdir), tensors(whole)
    different = [name for name in b if a.get(name) != b[name]]
    return "bit-equal at the end" if not different else f"DIFFERENT: {len(different)} of {len(b)} tensors"


def error_line(output):
    lines = [line for line in output.splitlines() if line.startswith(("error:", "stopped by"))]
    assert lines and "Traceback" not in output, output[-3000:]
    return lines[0]


def kill_20(folder, whole):
    """SIGKILL at a random moment, 20 times in one run of 40 epochs"""
    rng, epochs, at = random.Random(7), 40, []
    reference = os.path.join(folder, "kill_reference")
    run(reference, epochs=epochs)
    workdir = os.path.join(folder, "kill")
    for _ in range(20):
        process = start(workdir, epochs=epochs)
        wait_for(process, workdir, (saved(workdir) or [0])[-1] + rng.randint(2, 18))
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.communicate()
        at.append(saved(workdir)[-1])
    status, _ = run(workdir, epochs=epochs)
    assert status == 0
    return f"{same(workdir, reference)}; resumed from steps {at[0]} to {at[-1]}"


def stop(folder, whole, number):
    workdir = os.path.join(folder, number.name)
    process = start(workdir)
    wait_for(process, workdir, 15)
    process.send_signal(number)
    output, status = process.communicate()[0], process.returncode
    return f"status {status}, '{error_line(output)[:60]}...'; {again(workdir, whole)}"


def again(workdir, whole, *options):
    status, output = run(workdir, *options)
    assert status == 0, output
    return f"started again: {same(workdir, whole)}"


def sigterm(folder, whole):
    """SIGTERM in mid-epoch"""
    return stop(folder, whole, signal.SIGTERM)


def sigint(folder, whole):
    """SIGINT (Ctrl-C) in mid-epoch"""
    return stop(folder, whole, signal.SIGINT)


def full_disk(folder, whole):
    """Disk full (a file system of 9 MB)"""
    mount = os.path.join(folder, "small")
    os.makedirs(mount)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", mount], check=True)
    try:
        workdir = os.path.join(mount, "run")
        keep = "--config.checkpoint.keep=100"
        status, output = run(workdir, keep)
        assert status == 1, output
        moved = os.path.join(folder, "full_disk")
        shutil.copytree(workdir, moved)
    finally:
        subprocess.run(["umount", mount], check=True)
    message = error_line(output).replace(mount, "")
    return f"status 1, '{message[:90]}...'; with room {again(moved, whole, keep)}"


def damaged(folder, whole, name, damage):
    workdir = os.path.join(folder, name)
    process = start(workdir)
    wait_for(process, workdir, 20)
    process.kill()
    process.communicate()
    newest = os.path.join(workdir, "checkpoints", f"{saved(workdir)[-1]:08d}")
    damage(os.path.join(newest, next(n for n in os.listdir(newest) if "data" in n)))
    status, output = run(workdir)
    assert status == 0 and "is damaged" in output and "falling back to the one before" in output, output
    return f"falls back to the one before and says so; {same(workdir, whole)}"


def truncated(folder, whole):
    """Newest checkpoint truncated"""
    return damaged(folder, whole, "truncated", lambda path: os.truncate(path, os.path.getsize(path) // 2))


def flipped(folder, whole):
    """One bit of the newest checkpoint flipped"""

    def flip(path):
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 3)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 4]))

    return damaged(folder, whole, "flipped", flip)


def missing_shard(folder, whole):
    """A data file vanishes during the run, and at the start"""
    photos = os.path.join(folder, "photos")
    write_photos(photos)
    workdir = os.path.join(folder, "missing")
    options = ["--config.data.holdout=0.2", "--config.run.global_batch=16", "--config.data.max_corrupt=0"]
    process = start(workdir, *options, epochs=200, data=photos)
    wait_for(process, workdir, 20)
    for name in sorted(os.listdir(os.path.join(photos, "a"))):
        os.rename(os.path.join(photos, "a", name), os.path.join(photos, "a", "gone_" + name + ".txt"))
    output, status = process.communicate()[0], process.returncode
    first = error_line(output)
    status2, output = run(workdir, *options, epochs=200, data=photos)
    return f"status {status}, '{first[:100]}...'; at the start status {status2}, '{error_line(output)[:80]}...'"


def write_photos(folder):
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    rng = np.random.default_rng(0)
    for label, image in zip("ab", images):
        os.makedirs(os.path.join(folder, label))
        for index in range(60):
            y, x = rng.integers(0, 300), rng.integers(0, 500)
            crop = Image.fromarray(image[y : y + 100, x : x + 100])
            crop.save(os.path.join(folder, label, f"{index}.jpg"), quality=90)


def worker_killed(folder, whole):
    """One of two workers killed with SIGKILL"""
    workdir = os.path.join(folder, "workers")
    ports = []
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            ports.append(stack.enter_context(contextlib.closing(socket.socket())))
            ports[-1].bind(("localhost", 0))
        addresses = ",".join(f"localhost:{each.getsockname()[1]}" for each in ports)
    options = ["--config.runtime.strategy=multiworker", f"--config.runtime.workers={addresses}"]
    both = [start(workdir, *options, f"--config.runtime.worker={i}", epochs=300) for i in range(2)]
    wait_for(both[0], workdir, 15)
    both[1].kill()
    began = time.monotonic()
    output, status = both[0].communicate()[0], both[0].returncode
    took = time.monotonic() - began
    both = [start(workdir, *options, f"--config.runtime.worker={i}", epochs=300) for i in range(2)]
    before = saved(workdir)[-1]
    wait_for(both[0], workdir, before + 5)
    both[0].send_signal(signal.SIGTERM)
    resumed = "Restored" in both[0].communicate()[0]
    both[1].communicate()
    return (
        f"the other ends after {took:.0f} s, status {status}, '{error_line(output)[:45]}...'; started again both "
        f"{'resume' if resumed else 'DO NOT RESUME'}"
    )


def not_finite(folder, whole):
    """Loss and gradients not finite (learning rate 1e30)"""
    workdir = os.path.join(folder, "nan")
    status, output = run(workdir, "--config.optim.learning_rate=1e30")
    return f"status {status}, '{error_line(output)[:120]}...'"


def dispatcher_killed(folder, whole):
    """Dispatcher of the tf.data service killed in mid-epoch"""
    work = os.path.join(folder, "service")
    with contextlib.closing(socket.socket()) as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def serve(*flags):
        base = [sys.executable, os.path.join(ROOT, "launch.py"), "--mode=data_service"]
        return subprocess.Popen([*base, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    dispatcher = ["--role=dispatcher", f"--port={port}", f"--workdir={work}"]
    servers = [serve(*dispatcher)]
    time.sleep(8)
    servers.append(serve("--role=worker", f"--dispatcher=localhost:{port}"))
    time.sleep(8)
    workdir = os.path.join(folder, "served")
    try:
        process = start(workdir, f"--config.data.service=grpc://localhost:{port}", epochs=60)
        wait_for(process, workdir, 30)
        servers[0].kill()
        time.sleep(3)
        at = saved(workdir)[-1]
        servers.append(serve(*dispatcher))  # its journal lies in the workdir
        wait_for(process, workdir, 60 * STEPS)
        output = process.communicate(timeout=300)[0]
        return f"killed at step {at}, started again: the run ends with status {process.returncode}" + (
            "" if process.returncode == 0 else f", {output[-300:]!r}"
        )
    finally:
        for server in servers:
            server.kill()


def clock(folder, whole):
    """The clock jumps back by a day, then on by two"""
    workdir = os.path.join(folder, "clock")
    arguments = command(workdir)
    code = (
        "import sys, time; real = time.time; start = real(); "
        "time.time = lambda: real() + (0 if real() - start < 8 else -86400 if real() - start < 11 else 86400); "
        "from g16net import cli; cli.main(sys.argv)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments[2:]], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        universal_newlines=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    from g16net.run import records

    rows = records.read_lines(os.path.join(workdir, "records.jsonl"))
    assert all(0 < row["seconds"] < 600 and row["images_per_second"] > 0 for row in rows)
    return f"times by the monotonic clock are right; {same(workdir, whole)}"


def read_only(folder, whole):
    """Workdir on a file system that is mounted read-only"""
    mount = os.path.join(folder, "readonly")
    os.makedirs(mount)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m,ro", "tmpfs", mount], check=True)
    try:
        status, output = run(os.path.join(mount, "run"))
    finally:
        subprocess.run(["umount", mount], check=True)
    return f"status {status}, '{error_line(output).replace(folder, '')[:110]}'"


def two_runs(folder, whole):
    """A second run on the same workdir"""
    workdir = os.path.join(folder, "two")
    process = start(workdir)
    wait_for(process, workdir, 3)
    status, output = run(workdir)
    process.communicate()
    second = error_line(output).replace(folder, "")
    return f"the second: status {status}, '{second[:70]}...'; the first: {same(workdir, whole)}"


def other_run(folder, whole):
    """A workdir of other settings"""
    workdir = os.path.join(folder, "other")
    shutil.copytree(whole, workdir)
    status, output = run(workdir, "--config.model.norm=bn")
    assert "model.norm: ln_pn -> bn" in output
    return f"status {status}, the difference is shown (model.norm: ln_pn -> bn); nothing is written"


FAULTS = [
    kill_20, sigterm, sigint, full_disk, truncated, flipped, missing_shard, worker_killed, not_finite,
    dispatcher_killed, clock, read_only, two_runs, other_run,
]  # fmt: skip


def main(names):
    with tempfile.TemporaryDirectory() as folder:
        whole = os.path.join(folder, "whole")
        status, output = run(whole)
        assert status == 0, output
        for fault in FAULTS:
            if not names or fault.__name__ in names:
                try:
                    outcome = fault(folder, whole)
                except Exception as error:
                    outcome = f"FAILED: {error!r}"[:1500]
                print(f"| {fault.__doc__} | {outcome} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
