"""Whether a rewrite is held to its query, told from the texts alone, and random queries and histories to try it on."""

import re

from hypothesis import strategies as st

from bespeak.rewriting.skeleton import ARTICLES, DANGLING, ENDINGS, typed_words
from bespeak.text.words import FUNCTION_WORDS, fold, inner_words, is_negation, words

WORDS = """red Boats boats not without Don't no never 3 15 kg < C# C++ (waterproof) 1/2" WH-1000XM5 New York Zappa zappa
    Zappa's museum's museum break-up up the a of is it it's I which with second one first same U.S. é 東京 …""".split()  # noqa: SIM905
texts = st.lists(
    st.builds(str.__add__, st.sampled_from(WORDS), st.sampled_from(["", "", "", "?", ",", "."])), max_size=6
).map(" ".join)
histories = st.lists(texts, max_size=3)


def flaws(text, query, sources, may_go=(), may_add=None, must_add=()):
    """Every way in which the text is not a rewrite of the query; `may_go`, `may_add`, `must_add` as for a Skeleton."""
    tokens = text.split(" ")
    bare = [[token.removesuffix(ending) for ending in ENDINGS] for token in tokens]
    folded = [set(map(fold, forms)) for forms in bare]
    plain = [fold("".join(words(token))) for token in tokens]
    kept = typed_words(query, may_go)
    typed = {fold(chunk.text) for chunk in kept}
    places = align(kept, [(i, forms) for i, forms in enumerate(folded) if forms & typed])
    if places is None:
        return ["the words of the query are not all there, in their order"]
    others = [i for i, forms in enumerate(folded) if not forms & typed]
    added = [i for i in others if not folded[i] & FUNCTION_WORDS]
    own = [re.sub("['’]s?(?=.$)", "", token) for token in tokens]
    found = ["more sentences than in the query"] if n_ends(own[:-1]) > n_ends(query.split()[:-1]) else []
    found += [f"{kept[i].text!r} is not by its word" for i in range(1, len(kept)) if torn(kept, places, folded, i)]
    said, follows = words_said([query, *sources])
    negated = {i: after for i, after in negations(plain).items() if i in added}
    for i in added:
        form = next((form for form in bare[i] if form in said and fold(form) not in set(map(fold, words(query)))), None)
        if form is None:
            found.append(f"nobody said {tokens[i]!r}")
        elif is_negation(form):
            found += [f"{form!r} negates nothing"] if negated.get(i) not in added else []
        else:
            before = {plain[j] for j, of in negated.items() if of == i} or {""}
            found += [] if before & follows[fold(form), form] else [f"{form!r} lost or got a negation"]
            if may_add is not None and fold(form) not in may_add:
                found.append(f"{form!r} must not be added")
    once = [plain[i] for i in added]
    found += ["a word was added twice"] if len(once) > len(set(once)) else []
    found += [f"{word!r} is left out" for word in must_add if word not in once]
    if folded[-1] & DANGLING and not folded[-1] & set(map(fold, words(query)[-1:])):
        found.append(f"{tokens[-1]!r} dangles")
    return found


def n_ends(tokens):
    """How many of the words end a sentence; "U.S." does not."""
    return sum(re.search(rb"[?!]$|^[^.]{3,}\.$", token.encode()) is not None for token in tokens)


def align(kept, typed):
    """For each word of the query the place of its token, None for one that went; None if they do not fit."""
    if not kept:
        return None if typed else []
    if typed and fold(kept[0].text) in typed[0][1] and (rest := align(kept[1:], typed[1:])) is not None:
        return [typed[0][0], *rest]
    if kept[0].may_go and (rest := align(kept[1:], typed)) is not None:
        return [None, *rest]
    return None


def torn(kept, places, folded, i):
    """Whether something stands between a word of the query and the negation, number or name before it."""
    first, last = places[i - 1], places[i]
    if first is None or last is None or kept[i].may_go:
        return False
    between = folded[first + 1 : last]
    if kept[i].joins:
        return bool(between)
    return kept[i - 1].is_negation and any(not forms & (ARTICLES | kept[i].between) for forms in between)


def words_said(texts):
    """The words and parts of words of the texts; and for each content word, the negations that it follows, or ""."""
    said, follows = set(), {}
    for text in texts:
        negation = ""
        for word in words(text):
            forms = [word, *inner_words(word)]
            said.update(forms)
            if is_negation(word):
                negation = fold(word)
            elif fold(word) not in FUNCTION_WORDS:
                for form in forms:
                    follows.setdefault((fold(form), form), set()).add(negation)
                negation = ""
    return said, follows


def negations(plain):
    """Place of a negation -> place of the word that follows it, but for articles; None if none does."""
    places = range(len(plain))
    return {
        i: next((j for j in places[i + 1 :] if plain[j] not in ARTICLES), None)
        for i in places if is_negation(plain[i])
    }  # fmt: skip
