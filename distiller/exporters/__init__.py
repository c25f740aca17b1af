"""Students in other formats."""
