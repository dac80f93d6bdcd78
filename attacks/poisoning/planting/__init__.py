"""What an attacker plants, for drills and tests: none of it is a recipe, so that no candidate is made by it."""
