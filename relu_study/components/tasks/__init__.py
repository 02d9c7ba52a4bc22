"""Tasks: one registered function each."""
