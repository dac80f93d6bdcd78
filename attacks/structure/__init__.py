"""What the structure of a compressed model tells of its training records: masks, signs and code books alone."""
