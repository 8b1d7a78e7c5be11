"""Runs from their configuration: building, checking, training, evaluating, recording."""
