"""The results of a run: probe, distances, figures, report, card."""
