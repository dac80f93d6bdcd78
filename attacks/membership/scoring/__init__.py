"""Scores of membership: how much each record looks like a member, and which score is to be believed."""
