"""Formats of other projects; those of single files have NAME, `matches(content)` and `read(content, path, config)`."""
