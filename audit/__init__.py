"""The suite: plan in; findings, verdict and report out."""
