"""Metrics: pure functions of a snapshot, one file per family."""
