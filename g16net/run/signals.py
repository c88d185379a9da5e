"""SIGTERM and SIGINT end a run in an orderly way: the step is finished, saved, and told."""

import signal
import threading

NUMBERS = signal.SIGTERM, signal.SIGINT


class Stopped(Exception):
    """A run that a signal ended, after it saved."""

    def __init__(self, name: str, step: int, workdir: str) -> None:
        self.status = 128 + int(getattr(signal, name)) if name else 143
        super().__init__(
            f"stopped by {name or 'a signal to another worker'} at step {step}, which is saved in {workdir!r}; the "
            "same command goes on from there"
        )


class Signals:
    """While it is entered, the first SIGTERM or SIGINT only sets `received` to its name; a second one acts at once."""

    received = None

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._note) for number in NUMBERS}
        return self

    def _note(self, number, frame):
        self.received = signal.Signals(number).name
        signal.signal(number, self._before[number])

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
