"""Small sets in the formats of others: Parquet and Arrow as `datasets` has them, tar shards, CIFAR's binary files."""

import io
import json
import os
import tarfile

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

PHOTOS = load_sample_images().images  # two, 427 x 640
NAMES = ("ant", "bee", "cat")


def photo(i, kind="JPEG", mode="RGB"):
    """The bytes of a small photograph, another one for each `i`."""
    crop = PHOTOS[i % 2][(7 * i) % 300 :, (11 * i) % 500 :][:40, :50]
    file = io.BytesIO()
    Image.fromarray(crop).convert(mode).save(file, kind)
    return file.getvalue()


def features(names=NAMES):
    label = {"_type": "ClassLabel", "names": list(names)} if names else {"_type": "Value", "dtype": "int64"}
    return {"image": {"_type": "Image"}, "label": label}


def table(images, labels, names=NAMES, **more):
    """A pyarrow.Table with the metadata that `datasets` writes."""
    import pyarrow as pa

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)]
    columns = {"image": pa.array(rows, kind), "label": pa.array(labels)}
    columns.update((name, pa.array(values)) for name, values in more.items())
    declared = {"info": {"features": {**features(names), **{name: features()["label"] for name in more}}}}
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(declared)})


def parquet(folder, counts, split="train", group=4, first=0, label=lambda i: i % 3, image=photo, names=NAMES, **more):
    """Writes a Parquet file with each count of rows; row i over all files has the image and the label of i."""
    import pyarrow.parquet as pq

    os.makedirs(folder, exist_ok=True)
    for number, count in enumerate(counts):
        ids = range(first, first + count)
        first += count
        some = {name: [function(i) for i in ids] for name, function in more.items()}
        path = os.path.join(folder, f"{split}-{number:05d}-of-{len(counts):05d}.parquet")
        rows = table([image(i) for i in ids], [label(i) for i in ids], names, **some)
        pq.write_table(rows, path, row_group_size=group)
    return str(folder)


def saved_to_disk(folder, counts, split="train", **changes):
    """Writes Arrow files as `Dataset.save_to_disk` does, one of each count of rows, in batches of 4."""
    import pyarrow as pa

    os.makedirs(folder, exist_ok=True)
    names = [f"data-{number:05d}-of-{len(counts):05d}.arrow" for number in range(len(counts))]
    first = 0
    for name, count in zip(names, counts):
        ids = range(first, first + count)
        first += count
        rows = table([photo(i) for i in ids], [i % 3 for i in ids], **changes)
        with pa.OSFile(os.path.join(folder, name), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=4)
    for name, facts in (
        ("state.json", {"_data_files": [{"filename": name} for name in names], "_split": split}),
        ("dataset_info.json", {"features": features()}),
    ):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(facts, file)
    return str(folder)


def member(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def tars(folder, counts, split="train", cls=lambda i: b"%d" % (i % 3), image=photo, ending="jpg", target="cls"):
    """Writes a tar shard with each count of examples; example i over all shards has the image and the label of i."""
    os.makedirs(folder, exist_ok=True)
    first = 0
    for number, count in enumerate(counts):
        with tarfile.open(os.path.join(folder, f"{split}-{number:04d}.tar"), "w") as tar:
            for i in range(first, first + count):
                member(tar, f"some/{i:04d}.{ending}", image(i))
                if cls(i) is not None:
                    member(tar, f"some/{i:04d}.{target}", cls(i))
        first += count
    return str(folder)


def cifar(folder, counts=(3, 3, 3, 3, 3), test=4):
    """Writes the binary version of CIFAR-10 with so few images, and returns all of them, [images, 32, 32, 3]."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "batches.meta.txt"), "w", encoding="utf-8") as file:
        file.write("\n".join(NAMES) + "\n\n")
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    every = []
    for name, count in zip(files, [*counts, test]):
        with open(os.path.join(folder, name), "wb") as file:
            for _ in range(count):
                i = len(every)
                every.append(np.ascontiguousarray(PHOTOS[i % 2][5 * i :, 5 * i :][:32, :32]))
                file.write(bytes([i % 3]) + every[-1].transpose(2, 0, 1).tobytes())
    return np.stack(every)
