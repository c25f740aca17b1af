"""What a run is: YAML files, what they extend, overrides, and the typed recipe."""
