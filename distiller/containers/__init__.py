"""Which files are audio, and where it is in them."""
