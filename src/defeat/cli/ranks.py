"""Which one of several processes this is, before Lightning is asked: Hydra makes folders first."""

from __future__ import annotations

import os
from typing import NamedTuple

NO_STEP = ("bash", "interactive")
"""Names of SLURM jobs within which Lightning, too, takes a process for a single one."""


class ProcessRank(NamedTuple):
    """The processes of a run, as far as they are known to one that has just been started."""

    rank: int
    """Of this process over all nodes. Where only the node is known, the node's."""
    launched: int
    """How many torchrun or srun have started; 1 where Lightning starts the others, or there are none."""
    has_run_dir: bool
    """Lightning has started this process, and has told it the run folder of the one that it belongs to."""


def process_rank() -> ProcessRank:
    """Read the environment as Lightning will: torchrun goes before srun, and both before Lightning's own.

    A SLURM job by itself starts one process, whatever SLURM_NTASKS says: only the tasks of an srun step have
    ranks above 0, and SLURM_STEP_NUM_TASKS.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return ProcessRank(int(env["RANK"]), int(env["WORLD_SIZE"]), False)
    if int(env.get("SLURM_NTASKS", 1)) > 1 and env.get("SLURM_JOB_NAME") not in NO_STEP:
        rank = int(env.get("SLURM_PROCID", 0))
        return ProcessRank(rank, int(env.get("SLURM_STEP_NUM_TASKS", rank + 1)), False)
    local, node = int(env.get("LOCAL_RANK", 0)), int(env.get("NODE_RANK", 0))
    return ProcessRank(local or node, 1, local > 0)
