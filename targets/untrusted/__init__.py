"""Files that nobody vouches for: read under limits, checked, and never unpickled."""
