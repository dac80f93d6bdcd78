"""What a finished file takes and returns: assumed, tried out on data, and declared."""
