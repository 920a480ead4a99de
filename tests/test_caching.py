from bespeak.caching import RecentlyUsed


def test_the_entry_least_recently_used_goes_first():
    kept = RecentlyUsed[str, int](2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1
    kept.put("c", 3)
    assert (kept.get("a"), kept.get("b"), kept.get("c"), len(kept)) == (1, None, 3, 2)


def test_an_entry_expires_after_its_life():
    now = [0.0]
    kept = RecentlyUsed[str, int](2, life_s=10, clock=lambda: now[0])
    kept.put("a", 1)
    now[0] = 9.0
    assert "a" in kept
    now[0] = 10.0
    assert kept.get("a") is None
    assert "a" not in kept


def test_entries_about_a_user_are_forgotten():
    kept = RecentlyUsed[tuple[str, int], int](10)
    for number in range(4):
        kept.put(("ann" if number % 2 else "bob", number), number)
    kept.forget(lambda key: key[0] == "ann")
    assert [kept.get(("ann", 1)), kept.get(("bob", 2)), len(kept)] == [None, 2, 2]
    kept.clear()
    assert len(kept) == 0


def test_sizes_are_bounded_and_an_entry_that_is_too_large_is_not_kept():
    kept = RecentlyUsed[str, bytes](10, size_of=len)
    kept.put("a", b"1234")
    kept.put("b", b"123456")
    kept.put("c", b"12345678901")
    assert ("a" in kept, "b" in kept, "c" in kept) == (True, True, False)
    kept.put("a", b"12345")
    assert ("a" in kept, "b" in kept) == (True, False)


def test_a_value_begun_before_something_was_forgotten_is_not_kept():
    kept = RecentlyUsed[str, int](10)
    before = kept.n_forgotten
    kept.put("a", 1, before)
    kept.forget(lambda key: key == "b")
    kept.put("a", 2, before)
    assert kept.get("a") == 1
    kept.clear()
    kept.put("a", 3, kept.n_forgotten)
    assert kept.get("a") == 3
