"""Whether an input can make the deployed model work harder than it does on ordinary ones."""
