"""Further data of an audit: records that were to be forgotten, public ones, and those of another task."""
