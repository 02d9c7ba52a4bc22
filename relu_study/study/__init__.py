"""A study as plain data: RunSpec, Study, DrawStudy, claims, tables, figures. No JAX."""
