"""The definition of a run: YAML files, what they extend, overrides, and the typed recipe."""
