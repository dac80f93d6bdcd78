"""What a plan's names resolve to: models, data, finished files and the code that decides a result."""
