"""The built-in samplers and spacings, one file a family, registered through the same entry points as anybody's."""
