"""The words of a text as written, how they compare, and the function words of English."""

from __future__ import annotations

import re

FUNCTION_WORDS = frozenset(
    # Closed classes only. Words that reverse a meaning (not, no, never, without) or count (one, more, most) are left
    # out: they must come from the query, the history or a statement.
    """a an the this that these those some any all both each every other another such same
    i me my mine you your yours he him his she her hers it its we us our ours they them their theirs
    who whom whose what which when where why how
    is are was were be been being am do does did doing done have has had having
    can could will would shall should may might must
    i'm i've i'd i'll you're they're we're what's who's where's how's that's it's
    of in on at by for with from to into onto about as than between among during through over under after before
    against around near within across along toward towards since until upon via
    and or but if so because while though although whether there here then also too""".split()  # noqa: SIM905
)
"""English function words, folded. A grounded rewrite may always use them."""

_EDGES = ".,;:!?\"'()[]{}<>…“”‘’«»*`|"
_PARTS = re.compile(r"[-–—/'’]")
_POSSESSIVE = re.compile(r"['’](?:s|S)?$")


def words(text: str) -> list[str]:
    """The words as written: split at white space, without surrounding punctuation and the possessive.

    >>> words('Zappa\\'s "break-up" (in 1,969.5), C++ & AC/DC?')
    ['Zappa', 'break-up', 'in', '1,969.5', 'C++', '&', 'AC/DC']
    """
    stripped = (word.strip(_EDGES) for word in text.split())
    return [word for word in (_POSSESSIVE.sub("", word) for word in stripped) if word]


def fold(word: str) -> str:
    """The word in a form for comparison: case and the kind of apostrophe make no difference."""
    return word.casefold().replace("’", "'")


def inner_words(word: str) -> list[str]:
    """The parts of a compound of letters; numbers and codes have none.

    >>> inner_words("break-up"), inner_words("AC/DC"), inner_words("1969-71")
    (['break', 'up'], ['AC', 'DC'], [])
    """
    parts = [part for part in _PARTS.split(word) if part]
    return parts if len(parts) > 1 and all(part.isalpha() and len(part) > 1 for part in parts) else []


NEGATIONS = frozenset("not no never without except excluding neither nor none nobody nothing non cannot".split())  # noqa: SIM905


def is_negation(word: str) -> bool:
    """Whether the word reverses the meaning of the next one.

    >>> [is_negation(word) for word in ("without", "don't", "Nothing", "note")]
    [True, True, True, False]
    """
    folded = fold(word.strip(_EDGES))
    return folded in NEGATIONS or folded.endswith("n't")
