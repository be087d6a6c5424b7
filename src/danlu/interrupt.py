"""Leaving when asked to: Ctrl-C (SIGINT), SIGTERM, a terminal that is closed (SIGHUP)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from danlu.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_USUAL = (signal.SIG_DFL, signal.default_int_handler)
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it, and a process that is ended cannot


class Interruption:
    """Hears the signals that ask a run to end.

    The first one is answered as soon as nothing is lost by it: at once, or inside
    :meth:`deferred` when whoever works there looks at :attr:`asked`. The second one is left
    to the system, which ends the process wherever it is.

    Parameters
    ----------
    quiet : bool
        Whether to say nothing on stderr.

    Attributes
    ----------
    number : int or None
        The signal that was heard.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.number: int | None = None
        self._quiet, self._deferred = quiet, False

    @property
    def asked(self) -> bool:
        """Whether a signal was heard."""
        return self.number is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals for the time of the context.

        Only the main thread can, and only those that the program around has left alone are
        heard: a server that has its own way of ending keeps it.

        Raises
        ------
        Interrupted
            With the signal's number.
        """
        main = threading.current_thread() is threading.main_thread()
        before = {n: signal.getsignal(n) for n in _SIGNALS if main}
        before = {n: handler for n, handler in before.items() if handler in _USUAL}
        for number in before:
            signal.signal(number, self._hear)
        try:
            yield
        except Interrupted as error:
            error.number = self.number or error.number
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only take note of a signal inside the context; answer it behind it at the latest."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.number is not None:
            raise Interrupted("stopped; what was finished is kept", number=self.number)

    def _hear(self, number: int, _: Any) -> None:
        self.number = number
        for each in _SIGNALS:
            if signal.getsignal(each) == self._hear:
                signal.signal(each, signal.SIG_DFL)
        if not self._deferred:
            raise Interrupted("stopped; the stages that were finished are kept", number=number)
        if not self._quiet:
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            show = _SHOW_CURSOR if os.isatty(2) else ""
            # Not by Rich, whose locks this very thread may be waiting for.
            with suppress(OSError):
                os.write(2, f"{show}\n{name}: this step is finished and saved; "
                         "a second one leaves at once\n".encode())  # fmt: skip
