"""What a device does with an audited file: it is served only as it was audited, and watched while it runs."""
