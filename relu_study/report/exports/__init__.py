"""Results folders in experiment trackers and as a dataset: one file a destination. Libraries are imported inside functions."""
