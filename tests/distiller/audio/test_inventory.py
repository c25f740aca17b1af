"""The lines about a corpus, and their way through report.json."""

import json

from distiller.audio.inventory import Amount, Inventory


def inventory(**change):
    values = {
        "whole": Amount(40, 100.0), "split": Amount(), "windows": 0, "short": Amount(), "long": Amount(), "unusable": 0,
        "not_read": {}, "min_seconds": 0.0, "longest": 18.0, "window_seconds": 18.0,
    }  # fmt: skip
    return Inventory(**(values | change))


def test_nothing_to_say_about_a_corpus_that_is_used_whole():
    assert inventory().lines() == []


def test_every_group_counts():
    everything = inventory(
        split=Amount(60, 1500.0), windows=120, short=Amount(3, 1.8), unusable=2, not_read={".m4a": 4, ".wma": 1}
    )
    assert everything.found == 40 + 60 + 3 + 2 + 5
    assert everything.lines() == [
        "split: 60 recordings (0.417 hours) longer than 18 s, into 120 windows of at most 18 s (corpus.window_seconds)",
        "left out: 3 recordings (0.0005 hours) shorter than 0 s (corpus.min_seconds)",
        "set aside: 2 files (skipped.csv says why; corpus.max_skipped is the share that stops a run)",
        "not read: 4 .m4a, 1 .wma (convert them to wav or flac)",
    ]
    assert Inventory.from_dict(json.loads(json.dumps(everything.to_dict()))) == everything


def test_what_is_left_out_is_one_line_that_names_the_keys():
    (line,) = inventory(long=Amount(60, 5400), short=Amount(1, 36), min_seconds=2.0, window_seconds=None).lines()
    assert line == (
        "left out: 1 recording (0.01 hours) shorter than 2 s (corpus.min_seconds); 60 recordings (1.5 hours) "
        "longer than 18 s (corpus.window_seconds=20 would split them)"
    )
