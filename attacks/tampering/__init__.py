"""What a few flipped bits of the stored file do to a model, and which controls notice them."""
