"""What the bytes of a shipped file give away by themselves: training records, private words, the dense weights."""
