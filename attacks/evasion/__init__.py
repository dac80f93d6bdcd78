"""Adversarial inputs: a batched engine, its perturbers, and the worst case over all of them on the deployed model."""
