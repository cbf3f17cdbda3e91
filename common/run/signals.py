"""Ctrl-C and SIGTERM as a request to stop after the training step."""

import os
import signal
import time

SECONDS_APART = 1.0  # torchrun passes on a Ctrl-C that its ranks already got from the terminal


class StopSignal:
    """In the `with` block, SIGTERM or a first Ctrl-C sets `asked`; a second Ctrl-C raises
    KeyboardInterrupt as usual. So does a first Ctrl-C that has also killed a running compiler: a
    terminal sends it to all processes that were started from it."""

    def __enter__(self):
        self.asked, self.time = False, 0.0
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        # torch._dynamo's errors and torch._inductor's; importing them takes seconds
        if self.asked and kind and kind.__module__.startswith("torch._"):
            raise KeyboardInterrupt from None

    def _ask(self, number, _frame):
        if not self.asked:
            name = signal.Signals(number).name
            note = f"\n{name}: finishing this step; Ctrl-C again ends at once\n"
            os.write(2, note.encode())  # print is not safe in a handler
            self.asked, self.time = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.time >= SECONDS_APART:
            raise KeyboardInterrupt
