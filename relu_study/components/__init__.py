"""Everything that a study can name: activations, initialisers, networks, optimisers, tasks, metrics. JAX, no files."""
