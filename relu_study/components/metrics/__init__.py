"""Metrics: one pure function of a snapshot each, one file a family."""
