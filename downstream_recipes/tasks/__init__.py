"""A SUPERB task: its recipe, its corpora, checks of both, and one run of it."""
