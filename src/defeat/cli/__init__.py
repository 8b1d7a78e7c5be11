"""The console scripts: thin Hydra mains."""

import os

# Before torch is imported, which reads it once. A thread that waits for the others of its team then gives its
# core away; by default it spins, and where anything else runs on that core a training on the CPU becomes
# about half as fast or worse (docs/results.md). GPUs are not concerned.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
