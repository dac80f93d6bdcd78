"""Model inversion: for each class an input rebuilt from the model, and whether it gives training records away."""
