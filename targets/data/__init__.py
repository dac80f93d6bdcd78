"""Records with labels and bounds: read from files, checked, and split."""
