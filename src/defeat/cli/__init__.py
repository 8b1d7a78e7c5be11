"""The console scripts: thin Hydra mains."""

import os

# Set before torch is imported, which reads it once. A thread that waits for the others of its team then gives
# its core away; by default it spins, and if anything else runs on that core a training on the CPU becomes
# half as fast or worse (docs/performance.md). Trainings on GPUs are not affected.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
