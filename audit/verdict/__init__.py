"""The policy and what it decides: gates on findings and the verdict of the release."""
