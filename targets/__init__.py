"""What is judged: data and models, loaded safely and run as shipped."""
