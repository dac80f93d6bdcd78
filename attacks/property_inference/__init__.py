"""Property inference: does a model say which share of its training records has a property?"""
