"""Which teacher representations the student matches."""
