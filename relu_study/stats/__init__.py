"""Statistics over plain arrays: intervals, paired tests, survival, streaming moments."""
