"""Encoders as graphs for other runtimes."""
