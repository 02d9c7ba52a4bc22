"""The results folder: tiles, manifest, CSV files; atomic, checksummed, locked, resumable. No JAX."""
