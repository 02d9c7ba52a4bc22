"""Rules of other tools on gradients and losses, re-implemented from their descriptions."""
