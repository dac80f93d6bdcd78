"""Evasion: inputs inside an allowed set that the deployed model gets wrong."""
