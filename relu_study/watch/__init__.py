"""Nonlinearities of any JAX function or Flax model: detection in the jaxpr, taps, counts of dead units."""
