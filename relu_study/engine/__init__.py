"""Plan, compile, train and measure tiles of runs on every device. JAX, no files."""
