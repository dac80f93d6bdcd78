"""What a file holds, taken apart without running or believing it: archives, streams, arrays, texts and pictures."""
