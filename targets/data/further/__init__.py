"""Further data that a plan may name: records that were to be forgotten, and those of another task."""
