"""The decisions of a first page hold for ten minutes and for one user."""

from bespeak.proxy.chains import Chain, Chains
from bespeak.records import Rewrite, UserKey

ADA, BOB = UserKey("", "ada"), UserKey("", "bob")
REWRITE = Rewrite("it", "the tuition fee")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def chain(begun: float, query_id: str = "q") -> Chain:
    return Chain(query_id, REWRITE, begun=begun)


def test_a_chain_belongs_to_one_user_and_one_search():
    chains = Chains()
    kept = chain(chains.clock())
    chains.put(ADA, b"a", kept)
    assert chains.get(ADA, b"a") == kept
    assert chains.get(BOB, b"a") is chains.get(ADA, b"b") is chains.get(UserKey("other", "ada"), b"a") is None


def test_a_chain_expires():
    clock = Clock()
    chains = Chains(life_s=10, clock=clock)
    chains.put(ADA, b"a", chain(clock()))
    clock.now += 9
    assert chains.get(ADA, b"a")
    clock.now += 2
    assert chains.get(ADA, b"a") is None


def test_the_oldest_go_first():
    chains = Chains(limit=2)
    for search in (b"a", b"b", b"a", b"c"):
        chains.put(ADA, search, chain(chains.clock()))
    assert [bool(chains.get(ADA, search)) for search in (b"a", b"b", b"c")] == [True, False, True]


def test_a_forgotten_user_has_no_chains_and_older_ones_are_refused():
    clock = Clock()
    chains = Chains(clock=clock)
    chains.put(ADA, b"a", chain(clock()))
    chains.put(BOB, b"a", chain(clock()))
    under_way = chain(clock())
    clock.now += 1
    chains.forget(ADA)
    chains.put(ADA, b"b", under_way)
    assert chains.get(ADA, b"a") is chains.get(ADA, b"b") is None
    assert chains.get(BOB, b"a")
    clock.now += 1
    chains.put(ADA, b"b", chain(clock()))
    assert chains.get(ADA, b"b")
