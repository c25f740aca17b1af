"""Synthetic speech of many voices and languages, to train a teacher on: a folder of FLAC files, without phone labels.

`make.make_speech` fills the folder, speaker by speaker. Unlike the synthetic corpus (`distiller.synthesis`), whose
English sentences are fixed and labelled, this is as much and as varied as one asks for.
"""
