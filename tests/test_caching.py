from bespeak.caching import RecentlyUsed


def test_the_entry_least_recently_used_goes_first():
    kept = RecentlyUsed[str, int](2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1
    kept.put("c", 3)
    assert (kept.get("a"), kept.get("b"), kept.get("c"), len(kept)) == (1, None, 3, 2)


def test_an_entry_ends_after_its_life():
    now = [0.0]
    kept = RecentlyUsed[str, int](2, life_s=10, clock=lambda: now[0])
    kept.put("a", 1)
    now[0] = 9.0
    assert "a" in kept
    now[0] = 10.0
    assert kept.get("a") is None
    assert "a" not in kept


def test_what_concerns_somebody_is_forgotten():
    kept = RecentlyUsed[tuple[str, int], int](10)
    for number in range(4):
        kept.put(("ann" if number % 2 else "bob", number), number)
    kept.forget(lambda key: key[0] == "ann")
    assert [kept.get(("ann", 1)), kept.get(("bob", 2)), len(kept)] == [None, 2, 2]
    kept.clear()
    assert len(kept) == 0
