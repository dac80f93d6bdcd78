"""What leaves the house with an audit: signatures on it, on its evidence and on the models it judged."""
