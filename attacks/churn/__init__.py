"""Which decisions compression changes without any attacker, where, and for whom."""
