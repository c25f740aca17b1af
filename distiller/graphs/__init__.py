"""Encoders as graphs that other programs run."""
