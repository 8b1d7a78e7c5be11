"""Signals that ask a training to stop: it saves and ends, and can be resumed as if nothing had been."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

from lightning.pytorch import Trainer

from defeat.errors import DefeatError

log = logging.getLogger(__name__)

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP")
    if hasattr(signal, name)
)
"""Of schedulers that want the machine back (submitit's is SIGUSR2), of Ctrl-C, and of a closed terminal."""

_HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows

AGREE_EVERY = 10
"""Batches between two looks of several processes at whether one of them was told to stop."""


class StoppedError(DefeatError):
    """The training was told to stop, has saved, and can be resumed.

    Args:
        signum: of the signal.
        step: optimiser steps done.
        checkpoint: where they are saved.
    """

    def __init__(self, signum: int, step: int, checkpoint: str) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} after step {step}; go on with ckpt_path={checkpoint}")
        self.signum = signum


def hand_on(signum: int) -> None:
    """Let submitit, if it is what started this process, put the job into the queue again."""
    if signal.Signals(signum).name == "SIGUSR2" and callable(signal.getsignal(signum)):
        signal.raise_signal(signum)


class StopRequest:
    """Remembers whether one of :data:`SIGNALS` has come since :meth:`listen`."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._terminals: list[int] = []

    def listen(self) -> None:
        """Take the signals over from whoever has them; outside of the main thread nothing can.

        Lightning gives them back when its trainer ends, however it ends: it notes all handlers at its start.
        nohup has SIGHUP ignored, and it stays so.
        """
        if threading.current_thread() is threading.main_thread():
            self._terminals = [number for number in (1, 2) if os.isatty(number)]
            for signum in SIGNALS:
                if signum != _HANGUP or signal.getsignal(signum) != signal.SIG_IGN:
                    signal.signal(signum, self._note)

    def received(self, trainer: Trainer, batch_idx: int) -> int | None:
        """The signal that this process got or, told at every tenth batch, another one; None for none."""
        if trainer.world_size == 1:
            return self._signum
        if batch_idx % AGREE_EVERY:
            return None
        anywhere = trainer.strategy.reduce_boolean_decision(self._signum is not None, all=False)
        return (self._signum or signal.SIGTERM) if anywhere else None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == _HANGUP:
            self._leave_terminals()
        if signum == signal.SIGINT:
            if self._signum == signum:
                raise KeyboardInterrupt
            log.warning("stopping after this step; Ctrl-C once more stops at once, without saving")
        self._signum = signum

    def _leave_terminals(self) -> None:
        """Write no more to a terminal that is closed: the error would end the run before it has saved."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)
