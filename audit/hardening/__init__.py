"""What would mend the candidates that fail: trials, cheapest first, until each has one that passes."""
