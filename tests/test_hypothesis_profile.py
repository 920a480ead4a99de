import hypothesis


def test_no_example_has_a_time_limit():
    assert hypothesis.settings.default.deadline is None
