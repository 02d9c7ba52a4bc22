"""The nonlinearities of any JAX function: found in its jaxpr, tapped, and measured."""
