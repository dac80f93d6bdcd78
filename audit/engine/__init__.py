"""Runs cells and keeps their results: by content, resumable, here or on other machines."""
