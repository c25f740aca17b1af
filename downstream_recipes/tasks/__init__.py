"""A SUPERB task: its recipe, its corpora, what can be wrong with them, and one run of it."""
