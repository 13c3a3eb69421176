"""The built-in samplers, spacings and noise sources, one file per family, found by entry points like other plugins."""
