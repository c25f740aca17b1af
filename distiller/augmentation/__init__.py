"""Degraded speech for the student, time-aligned with the clean speech that the teacher gets."""
