"""What an attacker asks of the model: by strategy, from records that it owns."""
