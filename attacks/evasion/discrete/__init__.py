"""Evasion by exchange: whole features of a table or whole tokens are changed, as many as the attacker may."""
