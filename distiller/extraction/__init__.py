"""Hidden states of an encoder for every recording of a corpus, on disk."""
