"""Convolutional and attention networks, as Flax modules."""
