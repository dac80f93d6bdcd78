"""The report: an audit as one HTML document, and as a table in the terminal."""
