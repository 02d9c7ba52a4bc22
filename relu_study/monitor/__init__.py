"""Watch one's own training loop: measurements, TensorBoard, CSV, unit histories. JAX and files."""
