"""Decoding corpora once, into Lhotse Shar that `distiller.corpora` reads instead of them."""
