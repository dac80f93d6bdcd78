"""Whether an audit.json is what the stored evidence amounts to, and the evidence what the deployed files answer."""
