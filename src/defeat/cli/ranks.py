"""The rank of this process, read before Lightning is imported, since Hydra makes the run's folder first."""

from __future__ import annotations

import os
from typing import NamedTuple

NO_STEP = ("bash", "interactive")
"""Names of SLURM jobs in which a process is a single one, as in Lightning."""


class ProcessRank(NamedTuple):
    """What a process that has just been started knows about the processes of its run."""

    rank: int
    """The rank of this process over all nodes; the rank of its node where only that is known."""
    launched: int
    """The number of processes that torchrun or srun started; 1 if neither did, whatever Lightning starts."""
    has_run_dir: bool
    """Whether Lightning has started this process, and has told it the run folder of the first one."""


def process_rank() -> ProcessRank:
    """Read the environment as Lightning will: torchrun goes before srun, and both go before Lightning itself.

    A SLURM job starts one process by itself, whatever SLURM_NTASKS says: only the tasks of an srun step have
    ranks above 0, and only they have SLURM_STEP_NUM_TASKS.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return ProcessRank(int(env["RANK"]), int(env["WORLD_SIZE"]), False)
    if int(env.get("SLURM_NTASKS", 1)) > 1 and env.get("SLURM_JOB_NAME") not in NO_STEP:
        rank = int(env.get("SLURM_PROCID", 0))
        return ProcessRank(rank, int(env.get("SLURM_STEP_NUM_TASKS", rank + 1)), False)
    local, node = int(env.get("LOCAL_RANK", 0)), int(env.get("NODE_RANK", 0))
    return ProcessRank(local or node, 1, local > 0)
