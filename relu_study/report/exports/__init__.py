"""Results folders in experiment trackers and as a dataset: one file a destination. The libraries are imported inside functions."""
