"""Deployed models as their runtimes execute them."""
