"""What came out of a run: probe, distances, figures, report, card."""
