"""The shared work of evasion: radii, inputs crafted on one model for another, and who is fooled alone."""
