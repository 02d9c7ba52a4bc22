"""Detectors of training problems: from a run's recorded metrics to a named problem, its site and its onset. No JAX, no files."""
