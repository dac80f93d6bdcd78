"""Lower bounds of what a private training step really leaks, against the epsilon that is claimed."""
