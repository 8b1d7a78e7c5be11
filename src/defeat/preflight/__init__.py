"""Checks before a run: what would spoil it is found in a minute rather than in its results."""

from defeat.preflight.finding import CHECKS, Finding, PreflightError, Problem
from defeat.preflight.preflight import Preflight

__all__ = ["CHECKS", "Finding", "Preflight", "PreflightError", "Problem"]
