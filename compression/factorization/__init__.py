"""Weight matrices as products of smaller ones."""
