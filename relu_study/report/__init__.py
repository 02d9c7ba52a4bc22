"""Results from stored runs: verdicts, tables, figures, TensorBoard, one page. No JAX."""
