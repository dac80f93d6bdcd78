"""Whose model a compressed file is: by a fingerprint that needs no preparation, and by watermarks."""
