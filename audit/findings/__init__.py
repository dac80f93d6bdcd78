"""From results to rows: estimates with intervals, candidates, power, and the whole audit."""
