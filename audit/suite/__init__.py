"""The cells of an audit: which models are made, what is attacked, and what each result depends on."""
