"""audit.json: its rows, how it is read, and how its figures are written."""
