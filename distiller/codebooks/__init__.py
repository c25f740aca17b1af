"""Discrete targets: a codebook over a teacher's layers, and the units of every frame of a corpus on disk."""
