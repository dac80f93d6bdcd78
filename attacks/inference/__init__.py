"""Membership inference by other attackers: with labels alone, with all released versions, about a person's records."""
