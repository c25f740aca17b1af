"""Decoding corpora once, into Lhotse Shar that `distiller.corpora` reads in their place."""
