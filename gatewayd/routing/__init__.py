"""Which backend is asked: models, aliases, load and health."""
