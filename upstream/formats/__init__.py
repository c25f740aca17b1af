"""Foreign checkpoint formats, one key table each."""
