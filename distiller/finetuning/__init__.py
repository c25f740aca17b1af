"""CTC on any encoder: from transcripts to a recogniser, its error rates, and the text of audio files."""
