"""All tasks of one model, resumable, and their table."""
