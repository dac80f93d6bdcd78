"""What a gradient attack ascends: a loss, its gradient, and what stands in for one where the model gives none."""
