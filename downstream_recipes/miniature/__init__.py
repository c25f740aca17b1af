"""Synthesised miniature corpora of all tasks."""
