"""What every room needs: commands, files, values, progress, provenance. Nothing here imports torch."""
