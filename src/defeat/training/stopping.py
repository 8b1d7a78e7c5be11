"""Signals that ask a training to stop: it saves and ends, and can be resumed as if nothing had been."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

from lightning.pytorch import Trainer

from defeat.errors import DefeatError

log = logging.getLogger(__name__)

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT") if hasattr(signal, name)
)
"""The signals of schedulers that want the machine back (submitit's is SIGUSR2), and of Ctrl-C."""

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

    def listen(self) -> None:
        """Take the signals over from whoever has them; outside of the main thread nothing can.

        Lightning gives them back when its trainer ends, however it ends: it notes all handlers at its start.
        """
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
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
        if signum == signal.SIGINT:
            if self._signum == signum:
                raise KeyboardInterrupt
            log.warning("stopping after this step; Ctrl-C once more stops at once, without saving")
        self._signum = signum
