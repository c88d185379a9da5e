"""tf.data's service: a dispatcher and workers that prepare batches on other machines.

    launch.py --mode=data_service --role=dispatcher --port=5050 --workdir=DIR
    launch.py --mode=data_service --role=worker --port=5051 --dispatcher=HOST:5050      (on as many machines as help)
    launch.py --experiment=... --config.data.service=grpc://HOST:5050

The workers share out the steps of an epoch and read the data themselves, so all must see it under the same path.
Guarantee: a step comes at most once per epoch. When a worker dies, the epoch completes with the others; the steps that
it had in hand are lost to that epoch, and the next epoch's other order brings their images again. A dispatcher that is
started again on its workdir goes on where it was. Batches come in no fixed order, so a run with the service is not
repeatable to the bit; without it, it is.
"""

import os
from typing import Any

import tensorflow as tf
from absl import logging

from g16net.errors import UserError


def start(role: str, port: int, dispatcher: str = "", workdir: str = "", host: str = "localhost") -> Any:
    """Starts a server and returns it; `server.join()` then waits for its end.

    Args:
        role: "dispatcher" or "worker".
        port: TCP port to listen on; 0 takes a free one.
        dispatcher: HOST:PORT of the dispatcher, for a worker.
        workdir: where a dispatcher keeps its journal; empty: it forgets when it ends.
        host: under which the training processes reach this worker.
    """
    service = tf.data.experimental.service
    if role == "dispatcher":
        journal = os.path.join(workdir, "dispatcher") if workdir else None
        if journal:
            os.makedirs(journal, exist_ok=True)
        server = service.DispatchServer(
            service.DispatcherConfig(port=port, work_dir=journal, fault_tolerant_mode=bool(journal))
        )
        logging.info("Dispatcher at %s", server.target)
        return server
    if role != "worker":
        raise UserError(f"--role={role}: name what to start, --role=dispatcher or --role=worker")
    if not dispatcher:
        raise UserError("a worker needs its dispatcher: --dispatcher=HOST:PORT")
    address = dispatcher.split("://")[-1]
    # The worker's own address carries its port, which a free one (0) gets when it starts.
    server = service.WorkerServer(
        service.WorkerConfig(dispatcher_address=address, worker_address=f"{host}:{port or '%port%'}", port=port)
    )
    logging.info("Worker of %s", address)
    return server
