"""How a global batch is cut up: micro batch x accumulation x replicas. Pure Python, one rule for all hardware."""

from typing import Optional, Tuple

from g16net.errors import ConfigError


def split(
    global_batch: int, replicas: int, micro_batch: Optional[int] = None, accumulation: Optional[int] = None
) -> Tuple[int, int]:
    """`(micro_batch, accumulation)` with micro batch x accumulation x replicas = global batch.

    Args:
        global_batch: images in one weight update.
        replicas: copies of the model that train together.
        micro_batch: images in one forward pass of a replica; None: what accumulation leaves.
        accumulation: micro-batches added up for one weight update; None: what the micro batch leaves, 1 without one.

    Raises:
        ConfigError: where the product is another one than the global batch, with one that fits.
    """
    if accumulation is None:
        accumulation = 1 if micro_batch is None else max(global_batch // (micro_batch * replicas), 1)
    if micro_batch is None:
        micro_batch = max(global_batch // (accumulation * replicas), 1)
    product = micro_batch * accumulation * replicas
    if product != global_batch:
        raise ConfigError(
            f"runtime.micro_batch={micro_batch} x runtime.grad_accumulation={accumulation} x {replicas} "
            f"replica{'' if replicas == 1 else 's'} = {product}, not run.global_batch={global_batch}; "
            f"set --config.run.global_batch={product}, or other factors of {global_batch}"
        )
    return micro_batch, accumulation
