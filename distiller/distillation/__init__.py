"""From a recipe to a finished student."""
