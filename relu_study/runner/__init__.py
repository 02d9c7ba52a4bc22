"""Running a study: prepare, train, store, recover. JAX and files."""
