"""Mutated images, records and config values through predict, the pipeline and the config: no crash, hang or silence.

    python tools/fuzz.py --cases=12000 --seed=0

Each case must end within `--seconds`, in a result that is as promised or in the error that is promised for it: an
image is predicted with finite probabilities or reported; a record of a TFRecord file is read, counted as corrupt or
ends the stream with an error of TensorFlow that names its file; a config is refused with a ConfigError or holds exactly
what was given, in its type and range. Anything else is written to stdout with its seed, and the exit status is 1.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from g16net import compat  # noqa: E402
from g16net import config as config_lib  # noqa: E402
from g16net.config import recipe  # noqa: E402
from g16net.data import transforms  # noqa: E402
from g16net.errors import UserError  # noqa: E402
from g16net.models import efficientnet  # noqa: E402
from g16net.training import predict  # noqa: E402

WORDS = [b"", b"\0", b"\xff" * 9, b"\xff\xd8\xff", b"GIF89a", b"BM", b"\x89PNG\r\n\x1a\n", b"IHDR", b"\x7f\xff\xff\xff"]


def mutate(data, rng):
    """`data` with a few bytes changed, cut, repeated, inserted or replaced."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + rng.randrange(1, 40)]
        elif kind == 3:
            data[at:at] = rng.choice(WORDS)
        elif kind == 4:
            data[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", rng.getrandbits(32).to_bytes(4, "big")])
        else:
            data[at:at] = data[at : at + rng.randrange(1, 200)]
    return bytes(data)


def images(rng, cases):
    """Mutated JPEG, PNG, GIF and BMP files through the predictor. Yields (seed of the case, problem or None)."""
    pixels = np.random.RandomState(0).randint(0, 256, (24, 30, 3)).astype(np.uint8)
    bmp = b"BM" + (54 + 24 * 92).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    bmp += (40).to_bytes(4, "little") + (30).to_bytes(4, "little") + (24).to_bytes(4, "little")
    bmp += b"\1\0\x18\0" + bytes(24) + bytes(24 * 92)
    sound = [
        tf.io.encode_jpeg(pixels).numpy(),
        tf.io.encode_jpeg(pixels, progressive=True).numpy(),
        tf.io.encode_jpeg(pixels[:, :, :1]).numpy(),
        tf.io.encode_png(pixels).numpy(),
        tf.io.encode_png(np.concatenate([pixels, pixels[:, :, :1]], 2)).numpy(),
        bmp,
    ]
    model = efficientnet.build("TINY", num_classes=3, seed=1)
    predictor = predict.Predictor(model, ["ant", "bee", "cat"], {"size": 32})
    outcomes = {"predicted": 0, "reported": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "image")
        for data in sound:
            with open(path, "wb") as file:
                file.write(data)
            assert "predictions" in predictor([path])[0][0], "a sound image"
        for case in range(cases):
            with open(path, "wb") as file:
                file.write(mutate(rng.choice(sound), rng))
            (record,), found = predictor([path])
            ok = "predictions" in record and len(found) == 1 or bool(record.get("error"))
            if "predictions" in record:
                ok = ok and all(np.isfinite(p["probability"]) for p in record["predictions"])
            outcomes["predicted" if "predictions" in record else "reported"] += 1
            yield case, None if ok else f"neither predicted nor reported: {record}"
    print(f"  images: {outcomes}")


def records(rng, cases):
    """Mutated TFRecord files of four examples through the source and the pipeline's test batches."""
    from g16net.data import pipeline
    from g16net.data.sources import open_source

    image = tf.io.encode_jpeg(np.zeros((16, 16, 3), np.uint8)).numpy()
    feature = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[1])),
    }
    outcomes = {"read": 0, "some corrupt": 0, "stream ended with an error": 0, "refused": 0}
    example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    for case in range(cases):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder  # where the counts of records are kept
            with open(os.path.join(folder, "labels.txt"), "w") as file:
                file.write("ant\nbee\ncat\n")
            for split in ("train", "validation"):
                path = os.path.join(folder, f"{split}-00000-of-00001")
                with tf.io.TFRecordWriter(path) as writer:
                    for index in range(4):  # half the cases have sound framing around a mutated example
                        writer.write(mutate(example, rng) if case % 2 and index == 2 else example)
            if case % 2 == 0:
                with open(path, "rb") as file:
                    data = mutate(file.read(), rng)
                with open(path, "wb") as file:
                    file.write(data)
            problem = None
            try:
                source = open_source("tfrecord", "validation", folder)
                data = pipeline.eval_batches(
                    source,
                    lambda record, seed: dict(record, image=transforms.eval_image(record["image"], 16)),
                    4,
                    max_corrupt=1.0,
                    corrupt_log=os.path.join(folder, "corrupt.log"),
                )
                weights = sum(float(tf.reduce_sum(weight)) for _, _, weight in data)
                outcomes["read" if weights == source.num_examples else "some corrupt"] += 1
                if weights > source.num_examples:
                    problem = f"{weights} images from {source.num_examples}"
            except UserError as error:
                outcomes["refused"] += 1
                problem = None if str(error) else "an error without words"
            except tf.errors.OpError:
                outcomes["stream ended with an error"] += 1
            yield case, problem
    print(f"  records: {outcomes}")


def configs(rng, cases):
    """Mutated `--config.key=value` texts: refused by a ConfigError, or held exactly, in type and range."""
    # fmt: off
    texts = ["", "0", "-1", "1", "3", "1e400", "nan", "inf", "-inf", "none", "None", "true", "yes", "x", "1,2", "1,2,3",
             "(8,)", "9" * 30, "0x10", "1_000", " 7 ", "é", "\0", "0.5", "1e-5", "[128,160]", "nan,nan,nan", "B9"]
    # fmt: on
    keys = list(config_lib.FIELDS)
    outcomes = {"accepted": 0, "refused": 0}
    for case in range(cases):
        key = rng.choice(keys)
        if rng.random() < 0.1:
            key = mutate(key.encode(), rng).decode("latin1")
        text = rng.choice(texts) if rng.random() < 0.7 else mutate(rng.choice(texts).encode(), rng).decode("latin1")
        config, problem = config_lib.default(), None
        try:
            config_lib.override(config, [(key, text)])
            config = recipe.resolve(config)
            field, value = config_lib.FIELDS[key], config[key.split(".")[0]][key.split(".")[1]]
            outcomes["accepted"] += 1
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not np.isfinite(number) for number in numbers):
                problem = f"{key}={text!r} holds {value}"
            elif value is not None and not isinstance(value, field.type):
                problem = f"{key}={text!r} became {value!r}"
        except UserError:
            outcomes["refused"] += 1
        yield case, problem
    print(f"  configs: {outcomes}")


class Hang(Exception):
    pass


def alarm(*_):
    raise Hang


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", type=int, default=12000, help="60 % images, 37 % configs, 3 % records, the slow ones"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=20, help="for one case")
    options = parser.parse_args()
    compat.set_seed(options.seed)
    signal.signal(signal.SIGALRM, alarm)
    share = {images: 0.6, configs: 0.37, records: 0.03}
    problems = total = 0
    for part in share:
        name, cases = part.__name__, round(share[part] * options.cases)
        started, rng = time.time(), random.Random(options.seed)
        walk, case, slowest = part(rng, cases), -1, 0.0
        while True:
            begun = time.time()
            signal.alarm(options.seconds if case >= 0 else 120)  # the first has the model to build
            try:
                case, problem = next(walk)
            except StopIteration:
                break
            except Hang:
                problem, case = f"no end after {options.seconds} s", case + 1
            except Exception as error:  # what is caught here is what the test is about
                problem, case = f"{type(error).__name__}: {str(error)[:300]}", case + 1
            finally:
                signal.alarm(0)
            total += 1
            slowest = max(slowest, time.time() - begun if case else 0.0)
            if problem:
                problems += 1
                print(f"{name}, seed {options.seed}, case {case}: {problem}")
                if not walk.gi_frame:  # an exception ended it: the cases after this one are not tried
                    break
        print(f"{name}: {case + 1} cases in {time.time() - started:.0f} s, slowest {slowest:.2f} s", flush=True)
    print(f"{total} cases, {problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
