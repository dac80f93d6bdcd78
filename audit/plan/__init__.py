"""The plan: its keys, how it is read and checked, the sets it may name, and the ones that ship with it."""
