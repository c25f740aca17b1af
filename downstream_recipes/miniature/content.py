"""The texts of the miniature corpora: keywords, commands, requests with slots."""

import numpy as np

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN_WORDS = ("bed", "bird", "cat", "happy", "house", "tree", "wow", "zero")

# Fluent Speech Commands: (action, object, location) -> wordings
COMMANDS: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("activate", "lights", "kitchen"): ("turn on the lights in the kitchen", "kitchen lights on please"),
    ("activate", "lights", "bedroom"): ("turn on the lights in the bedroom", "bedroom lights on please"),
    ("deactivate", "lights", "kitchen"): ("switch off the kitchen lights", "lights out in the kitchen"),
    ("deactivate", "lights", "bedroom"): ("switch off the bedroom lights", "lights out in the bedroom"),
    ("activate", "music", "none"): ("play some music", "start the music now"),
    ("deactivate", "music", "none"): ("stop the music", "no more music please"),
    ("increase", "heat", "none"): ("make it warmer in here", "turn the heating up"),
    ("decrease", "heat", "none"): ("it is too hot in here", "turn the heating down"),
}

# Audio SNIPS: intent -> sentences whose {slot}s are filled
REQUESTS: dict[str, tuple[str, ...]] = {
    "PlayMusic": ("play the {object} by {artist}", "i want to hear {artist}"),
    "GetWeather": ("will it rain in {city} {time}", "what is the weather in {city}"),
    "BookRestaurant": ("book a table in {city} {time}", "find me a place to eat {time}"),
}
SLOTS: dict[str, tuple[str, ...]] = {
    "object": ("song", "album", "tune"),
    "artist": ("mary white", "john brown", "the foxes"),
    "city": ("london", "new york", "berlin"),
    "time": ("tonight", "tomorrow morning", "at noon"),
}


def request(random: np.random.Generator) -> tuple[str, list[str], str]:
    """A sentence, a tag for each word ("O" or the slot's name), and the intent."""
    intent = list(REQUESTS)[int(random.integers(len(REQUESTS)))]
    template = REQUESTS[intent][int(random.integers(len(REQUESTS[intent])))]
    words, tags = [], []
    for part in template.split():
        slot = part.strip("{}")
        filler = [part] if slot == part else SLOTS[slot][int(random.integers(len(SLOTS[slot])))].split()
        words += filler
        tags += ["O" if slot == part else slot] * len(filler)
    return " ".join(words), tags, intent
