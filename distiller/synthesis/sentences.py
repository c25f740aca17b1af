"""English sentences for the synthetic corpus: a lexicon, a small grammar, some word salad.

A sentence has seven to eleven words: about three seconds, about forty phones. The salad breaks the grammar's word
order, so that a model of the sound cannot rely on the grammar alone.
"""

from collections.abc import Sequence

import numpy as np

_WORDS = {
    "determiner": "the a this that my your his her our their every some another one",
    "number": "two three four five six seven eight nine ten eleven twelve twenty",
    "adjective": """
        big small old young quick slow warm cold bright dark green blue red yellow brown grey black white happy
        angry quiet noisy heavy thin thick soft rough smooth sharp round narrow broad gentle fierce clever lazy
        proud shy loud cheap foolish unusual royal northern southern
    """,
    "noun": """
        dog cat horse goat cow bird fox mouse bear rabbit teacher doctor farmer sailor painter singer baker
        driver judge boy girl king queen soldier stranger neighbour brother sister father mother uncle cousin
        nurse pilot house garden river mountain valley forest bridge street village city harbour ship boat train
        wagon road path field stone window door table chair kitchen cellar tower castle market station library
        museum church school beach island lake ocean book letter paper pencil basket bottle lamp candle hammer
        spoon plate cup cheese apple orange cherry potato onion carrot jacket coat hat shoe glove ring watch
        coin key box bag rope wheel engine picture treasure vision voice noise cloud song thought cure month
        tooth feather television
    """,
    "plural": """
        dogs cats horses goats foxes bears teachers farmers sailors judges boys girls queens soldiers brothers
        houses gardens rivers bridges villages ships roads stones windows doors chairs castles churches beaches
        books letters bottles candles spoons cups apples cherries onions jackets shoes gloves coins keys boxes
        ropes wheels pictures treasures voices clouds songs months
    """,
    "transitive": """
        watches sees hears finds takes brings carries follows loves fears catches paints sells buys breaks opens
        closes pushes pulls throws drops holds hides washes measures guards leaves reaches visits remembers
        forgets describes joins enjoys chooses touches borrows
    """,
    "intransitive": """
        sleeps waits laughs sings jumps walks runs works dreams shouts whispers smiles falls arrives dances
        breathes shivers vanishes returns
    """,
    "preposition": """
        in on under over near behind beside above below across through around with without before after towards
        against
    """,
    "conjunction": "and but because while when until although so",
    "adverb": """
        quickly slowly often never always quietly today tomorrow again together usually there here soon
        yesterday
    """,
}
WORDS = {kind: words.split() for kind, words in _WORDS.items()}
LEXICON = tuple(sorted({word for words in WORDS.values() for word in words}))

# A symbol expands to one of its rows; a symbol that is neither here nor in WORDS is a word.
GRAMMAR = {
    "sentence": (
        "subject transitive object place",
        "subject transitive object conjunction subject intransitive",
        "subject intransitive place , conjunction subject intransitive adverb",
        "preposition object , subject transitive object",
        "adverb , subject transitive object place",
        "subject place intransitive conjunction transitive object",
    ),
    "subject": ("determiner noun", "determiner adjective noun", "determiner adjective adjective noun"),
    "object": ("determiner noun", "determiner adjective noun", "number plural", "the number adjective plural"),
    "place": ("preposition determiner noun", "preposition determiner adjective noun", "preposition the number plural"),
}
SALAD_SHARE = 0.15
MIN_WORDS, MAX_WORDS = 7, 11


def sentence(random: np.random.Generator) -> str:
    """One sentence of the grammar or, occasionally, of words in any order."""
    if random.random() < SALAD_SHARE:
        words = [_pick(random, LEXICON) for _ in range(random.integers(MIN_WORDS, MAX_WORDS + 1))]
    else:
        words = []
        while not MIN_WORDS <= sum(word != "," for word in words) <= MAX_WORDS:
            words = _expand(random, "sentence")
    text = " ".join(words).replace(" ,", ",")
    return text[0].upper() + text[1:] + "."


def _expand(random: np.random.Generator, symbol: str) -> list[str]:
    if symbol in GRAMMAR:
        return [word for part in _pick(random, GRAMMAR[symbol]).split() for word in _expand(random, part)]
    return [_pick(random, WORDS[symbol]) if symbol in WORDS else symbol]


def _pick(random: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(random.integers(len(choices)))]
