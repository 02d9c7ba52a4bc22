"""Tasks: data sets and their losses, one registered function each."""
