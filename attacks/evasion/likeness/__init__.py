"""What the inputs that fooled a model are like: how far from their records, how alike, and which records fell first."""
