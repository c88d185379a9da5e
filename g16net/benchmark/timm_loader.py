"""Times timm's loader in a process of its own (TensorFlow and torch do not share one well); prints images per second.

python -m g16net.benchmark.timm_loader FOLDER SIZE BATCH SECONDS WARMUP WORKERS
"""

import sys
import time


def main(folder, size, batch, seconds, warmup, workers):
    """timm's `create_loader` with its standard training transform over the class folders in `folder`."""
    import timm.data

    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=folder),
        input_size=(3, int(size), int(size)),
        batch_size=int(batch),
        is_training=True,
        num_workers=int(workers),
        use_prefetcher=False,
        persistent_workers=True,
    )
    begin = images = None
    first = time.perf_counter()
    while True:
        for pictures, _ in loader:
            now = time.perf_counter()
            if begin is None and now - first >= float(warmup):
                begin, images = now, 0
            elif begin is not None:
                images += len(pictures)
                if now - begin >= float(seconds):
                    print(images / (now - begin))
                    return


if __name__ == "__main__":
    main(*sys.argv[1:])
