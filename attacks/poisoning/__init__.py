"""Whether somebody has poisoned a model's training, its weights or its compression: behaviour that a trigger calls."""
