"""Error rates, the columns of the table and the two overall scores."""
