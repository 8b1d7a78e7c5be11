"""If one process of a distributed run fails, the others end too, also on other nodes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from defeat.cli.ranks import process_rank

POLL_SECONDS = 2.0
"""Seconds between two looks at the store."""

GRACE_SECONDS = 10.0
"""Seconds in which a process may end by itself, with its own message, after another one has failed."""


@contextmanager
def abort_together() -> Iterator[None]:
    """End this process with status 1 if another one of the run fails inside this block, and vice versa.

    torchrun ends the processes of its own node only. Those of other nodes would wait for the one that has
    failed until a collective operation times out, which takes half an hour where it was to join the process
    group. Processes tell each other through the store that torchrun keeps for all of them. Processes that a
    signal ends are left alone, and so is srun, which has --kill-on-bad-exit.
    """
    store = _connect()
    if store is None:
        yield
        return
    # torchrun may start all again after a failure
    key = f"defeat/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    done = threading.Event()
    threading.Thread(target=_watch, args=(store, key, done), name="abort-together", daemon=True).start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or (isinstance(error, SystemExit) and error.code == 1):
            _tell(store, key)
        raise
    finally:
        done.set()


def _connect() -> TCPStore | None:
    """Connect to the store of torchrun's first launcher; None where there is no store or no other process."""
    env = os.environ
    if process_rank().launched == 1 or env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        address = env["MASTER_ADDR"], int(env["MASTER_PORT"])
        return TCPStore(*address, is_master=False, timeout=timedelta(seconds=30))
    except DistError:  # the process group will say so better
        return None


def _tell(store: TCPStore, key: str) -> None:
    try:
        store.set(key, str(process_rank().rank))
    except DistError:  # the first launcher has ended already
        return


def _watch(store: TCPStore, key: str, done: threading.Event) -> None:
    while not done.wait(POLL_SECONDS):
        try:
            failed = store.check([key])
        except DistError:  # the first launcher has ended
            return
        if failed and not done.wait(GRACE_SECONDS):
            rank, other = process_rank().rank, store.get(key).decode()
            print(f"error: rank {rank} ends as rank {other} has failed", file=sys.stderr, flush=True)
            os._exit(1)  # the main thread waits inside of a library, where no exception reaches it
