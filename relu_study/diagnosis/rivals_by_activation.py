"""Rules of other tools on activations, re-implemented from their descriptions."""
