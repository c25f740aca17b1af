"""The networks that a student learns from: one, or several at once."""
