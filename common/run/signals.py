"""Ctrl-C and SIGTERM as a request to stop after the training step."""

import os
import signal


class StopSignal:
    """In the `with` block, SIGTERM or a first Ctrl-C sets `asked`; a second Ctrl-C raises
    KeyboardInterrupt as usual."""

    def __enter__(self):
        self.asked = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, _frame):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        note = f"\n{signal.Signals(number).name}: finishing this step; Ctrl-C again ends at once\n"
        os.write(2, note.encode())  # print is not safe in a handler
