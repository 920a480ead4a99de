"""The gate: which queries are left alone, and why; "" means that the query may be rewritten."""

from __future__ import annotations

import re

from bespeak.records import Profile
from bespeak.statuses import Reason

MAX_WORDS = 60
MAX_CHARS = 500
"""Longer queries are self-contained, and the rewriter would see only their end."""


def decline_rewriting(query: str, profile: Profile) -> Reason | None:
    """Why this query must not be rewritten for this user; None if it may be.

    >>> decline_rewriting("and how much is it?", Profile())
    <Reason.NO_HISTORY: 'no_history'>
    """
    if not profile.consent:
        return Reason.REFUSED
    if not (profile.turns or profile.statements):
        return Reason.NO_HISTORY
    return _form(query.strip())


def _form(query: str) -> Reason | None:
    if not any(c.isalnum() for c in query):
        return Reason.NO_TEXT
    if len(query) > MAX_CHARS or len(query.split()) > MAX_WORDS:
        return Reason.TOO_LONG
    if _QUOTED.fullmatch(query):
        return Reason.QUOTED
    if has_operators(query):
        return Reason.OPERATORS
    if is_identifier(query):
        return Reason.IDENTIFIER
    if is_other_script(query):
        return Reason.OTHER_LANGUAGE
    return None


_QUOTED = re.compile(r"""["“„«].+["”“»]|'[^']+'|‘[^’]+’""", re.DOTALL)

_OPERATORS = re.compile(
    r"""
      (?<!\S)[+-]?[A-Za-z_][\w.]*:(?:["(\[{*<>]|[\w./-])     # field:value, field:"…", field:[1 TO 5], field:>=10
    | \S\s+(?:AND|OR|NOT|&&|\|\|)\s+\S | ^NOT\s              # Boolean operators are written in capitals
    | (?<!\S)[+-](?=[A-Za-z"(])\S+                           # +must, -mustnot
    | (?<!\S)[\w-]*[A-Za-z][\w-]*\*(?!\S)                    # prefix*
    | (?<!\S)\*(?:\w+|:\*)                                   # *suffix, *:*
    | \w\?\w                                                 # te?t
    | \w~\d*(?:\.\d+)?(?!\S) | "~\d | \w\^\d                 # fuzzy~, "near"~5, boost^2
    | (?<!\S)/\S.*\S/(?!\S)                                  # /regular expression/
    | ^[{\[].*[}\]]$                                         # a body, not a query
    """,
    re.VERBOSE,
)


def has_operators(query: str) -> bool:
    """Whether the query uses an engine's query syntax.

    >>> has_operators("title:python AND year:[2019 TO *]"), has_operators("is it 3:30 or 4:30?")
    (True, False)
    """
    if _URL.match(query):
        return False
    if query.isupper():  # all in capitals: AND and OR are words
        query = query.lower()
    return _OPERATORS.search(query) is not None


_URL = re.compile(r"(?i)(?:[a-z][a-z0-9+.-]*://|www\.)\S+$|(?:mailto|tel|doi|urn|isbn):\S+$")

_IDENTIFIERS = re.compile(
    r"""
      (?:[a-z][a-z0-9+.-]*://|www\.)\S+ | (?:mailto|tel|doi|urn|isbn):\S+         # addresses
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+                                                # e-mail
    | (?:[\w-]+\.)+(?:com|org|net|io|dev|edu|gov|de|fr|uk|eu|info|app)(?:/\S*)?   # example.org/page
    | \{?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\}?                           # UUID
    | 0x[0-9a-f]+ | (?=[0-9a-f]*\d)[0-9a-f]{7,64}                                 # hexadecimal: a commit, a digest
    | (?=(?:\D*\d){6})\+?\d[\d .,:/()-]*\d | \#\d+                               # long numbers: EAN, telephone
    | (?:~|\.{1,2})?(?:/[\w.@+-]+)+/? | [a-z]:\\\S* | \\\\\S+                     # paths
    | (?:[\w-]+/)+[\w-]+\.\w{1,5}                                                 # src/main.py
    | [\w-]+(?:\.[\w-]+)*\.(?:py|js|ts|java|go|rs|c|cpp|h|md|txt|json|ya?ml|toml|xml|html|css|csv|pdf|docx?
       |xlsx?|png|jpe?g|gif|zip|exe|log|sh|sql)                                 # main.py, report.pdf
    | [a-z_]\w*(?:(?:\.|::|->|\#)[a-z_]\w*)+(?:\(.*\))? | [a-z_]\w*\(.*\)         # os.path.join, std::map, f()
    | [a-z0-9]*_\w+                                                               # snake_case
    | (?=\S*\d)(?=\S*[a-z])[a-z0-9]+(?:[-_./][a-z0-9]+)+                          # SKU: WH-1000XM5, CVE-2021-44228
    | (?=\w*\d\w*\d)(?=\w*[a-z])\w{5,}                                            # B08N5WRWNW, ORA12154
    | v?\d+(?:\.\d+)+(?:[-+][\w.]+)?                                              # 1.2.3-rc1
    """,
    re.VERBOSE | re.IGNORECASE,
)

_CAMEL = re.compile(r"[a-z]+[a-z0-9]*(?:[A-Z][a-z0-9]+)+|(?:[A-Z][a-z0-9]+){2,}|[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_CODE_WITH_LABEL = re.compile(
    r"(?:(?:error|code|errno|order|sku|isbn|ean|asin|ticket|case|rfc|cve|pep|issue|invoice|part|model)"
    r"(?:\s+(?:code|no\.?|number|nr\.?|id))?\s*[:#]?\s*)(\S*\d\S*)",
    re.IGNORECASE,
)
_LABEL_CODE = re.compile(r"[A-Z]{2,5}[ -]\d{3,}[A-Z0-9-]*")  # RFC 9110, HTTP 404, PEP 8 has too few digits
_ERA = re.compile(r"(?:19|20)\d\ds?|\d{1,3}(?:st|nd|rd|th|s|k|m|kg|g|cm|mm|km|gb|mb|tb|hz|w|v|%|p)?", re.IGNORECASE)


def is_identifier(query: str) -> bool:
    """Whether the whole query is a code, a number, an address, a path or a name from a program.

    >>> [is_identifier(q) for q in ("WH-1000XM5", "error code 0x80070005", "the second one", "1969", "covid-19")]
    [True, True, False, False, False]
    """
    text = query.rstrip("?!.").strip()
    if not text or _ERA.fullmatch(text) or text.lower() in _WORDS_WITH_DIGITS:
        return False
    if any(pattern.fullmatch(text) for pattern in (_IDENTIFIERS, _CODE_WITH_LABEL, _LABEL_CODE)):
        return True
    return bool(_CAMEL.fullmatch(text)) and text.lower() not in _CAMEL_NAMES


_WORDS_WITH_DIGITS = frozenset({"covid-19", "covid19", "24/7", "and/or", "9/11", "50/50", "mp3", "mp4", "u2", "web3"})
_CAMEL_NAMES = frozenset(
    """iphone ipad ipod imac ebay youtube linkedin paypal facebook whatsapp tiktok github gitlab javascript typescript
    postgresql mysql mongodb powerpoint playstation macbook wordpress openai chatgpt elasticsearch airpods ios macos
    mcdonald mcdonalds mccartney macarthur deepmind""".split()  # noqa: SIM905
)


def is_other_script(query: str) -> bool:
    """Whether most letters are not Latin: the model knows only English.

    >>> is_other_script("東京の天気"), is_other_script("naïve café"), is_other_script("what does 東京 mean")
    (True, False, False)
    """
    letters = [c for c in query if c.isalpha()]
    return sum(c > "ɏ" for c in letters) * 2 > len(letters)
