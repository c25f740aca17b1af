"""Synthetic speech of many voices and languages, to train a teacher on: a folder of FLAC files, without phone labels.

`make.make_speech` fills the folder, speaker by speaker. Unlike the synthetic corpus (`distiller.synthesis`), whose
English sentences are fixed and labelled, this can be as large and as varied as needed.
"""
