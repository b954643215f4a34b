"""The settings: their declarations, and how the file, environment and command line are read."""
