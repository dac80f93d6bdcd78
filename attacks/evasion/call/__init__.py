"""What `evade` is made of: what can be attacked, where an input may lie, and when to doubt what came of it."""
