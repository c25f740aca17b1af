"""From a path to cuts, and corpora prepared once."""
