"""What a run says about the hardware that it finds itself on."""

import numpy as np
import pytest

from g16net.run import devices

ZEN3, ZEN4, SAPPHIRE = "avx avx2 fma sse2", "avx avx2 avx512f avx512_bf16 sse2", "avx512f avx512_fp16 sse2"


@pytest.mark.parametrize(
    ("precision", "features", "warned"),
    [
        ("mixed_bfloat16", ZEN3, True),
        ("mixed_bfloat16", ZEN4, False),
        ("mixed_bfloat16", "avx2 avx_ne_convert sse2", False),
        ("mixed_float16", ZEN4, True),
        ("mixed_float16", SAPPHIRE, False),
        ("float32", ZEN3, False),
        ("mixed_bfloat16", "fp asimd bf16", False),  # not an x86 CPU
        ("mixed_bfloat16", "", False),
    ],
)
def test_a_precision_that_slows_a_cpu_down_is_warned_of_once(precision, features, warned, caplog):
    devices.warn_of_slow.cache_clear()
    for _ in range(2):
        devices.warn_of_slow(precision, features)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == warned
    assert all(precision in text and "--config.runtime.precision=float32" in text for text in told)


def test_what_is_drawn_is_the_same_in_all_workers_and_new_each_time():
    class Worker(devices.Devices):
        def __init__(self, index):
            self.shard = index, 2

        def sum_over_workers(self, values):
            sums.append(values)
            return np.sum(sums, axis=0, dtype=np.float32)

    names = []
    for _ in range(2):
        sums: list = []
        chief = Worker(0).drawn()
        assert Worker(1).drawn() == chief and len(chief) == 24
        names.append(chief)
    assert names[0] != names[1]
