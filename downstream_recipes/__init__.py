"""SUPERB: recipes, s3prl on a current stack, corpora, scores."""
