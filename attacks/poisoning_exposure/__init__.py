"""What poisoned training and calibration records would do to the user's own training, dense and compressed."""
