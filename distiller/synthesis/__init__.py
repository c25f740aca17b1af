"""The synthetic corpus: speech made on demand, with speaker and phone labels.

`splits.load_split` gives a split of it as Lhotse cuts, from the user's cache or made now; `splits.phone_targets` gives
a cut's labels per frame. `shards.synthesise` makes a corpus of any list of Utterances.

The voice is libespeak-ng (GPL-3), which runs in separate processes (`worker.py`) and is never loaded into this one.
"""
