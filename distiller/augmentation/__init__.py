"""Degraded speech for the student, of the same timing as the clean speech that the teacher hears."""
