"""The settings: what there is to set, and how files, environment and command line are read."""
