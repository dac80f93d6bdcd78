"""Records that occur more than once, or nearly so."""
