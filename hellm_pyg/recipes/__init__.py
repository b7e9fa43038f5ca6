"""Complete recipes (YAML) of the named profiles and data sets."""
