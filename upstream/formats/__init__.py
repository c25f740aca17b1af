"""Formats of other projects; those of single files have NAME, `matches(content)`, `read(content, path, model_config)`."""
