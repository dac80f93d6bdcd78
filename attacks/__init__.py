"""What an adversary can do to a deployed model: a target and data in, evidence per record out."""
