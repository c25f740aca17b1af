"""From a path to cuts, and prepared corpora."""
