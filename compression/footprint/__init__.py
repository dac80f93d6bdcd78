"""What a model costs: bytes, operations, energy and time."""
