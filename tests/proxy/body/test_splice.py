"""Everything that is not replaced keeps its bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.errors import InputError
from bespeak.proxy.body.splice import edit_object, edit_read, read_array, read_members, read_value, replace

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
SPACED = st.sampled_from([None, 1, 3, "\t"])
"""`indent` of a pretty answer."""


@given(st.dictionaries(st.text(), VALUES, max_size=5), SPACED, st.booleans())
def test_an_object_is_read_with_the_places_of_its_members(given_object, indent, escaped):
    text = f"  {json.dumps(given_object, indent=indent, ensure_ascii=escaped)} tail"
    members, end = read_members(text)
    assert [(name, span.value) for name, span in members] == list(given_object.items())
    assert [json.loads(text[span.start : span.end]) for _, span in members] == list(given_object.values())
    assert text[end:] == " tail"


@given(st.lists(VALUES, max_size=6), SPACED)
def test_an_array_is_read_with_the_places_of_its_elements(given_array, indent):
    text = json.dumps(given_array, indent=indent)
    elements, end = read_array(text)
    assert [json.loads(text[span.start : span.end]) for span in elements] == given_array
    assert end == len(text)


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.dictionaries(st.text(), VALUES, max_size=3), st.data())
def test_an_edited_object_changes_in_nothing_else(given_object, changes, data):
    removed = data.draw(st.sets(st.sampled_from(sorted(given_object)))) if given_object else set()
    text = edit_object(json.dumps(given_object), 0, {name: json.dumps(v) for name, v in changes.items()}, removed)
    expected = {name: value for name, value in given_object.items() if name not in removed} | changes
    assert json.loads(text) == expected


@given(
    st.dictionaries(st.text(), VALUES, max_size=5), st.dictionaries(st.text(), VALUES, max_size=3), SPACED, st.data()
)
def test_a_span_is_edited_like_an_object(given_object, changes, indent, data):
    removed = data.draw(st.sets(st.sampled_from(sorted(given_object)))) - set(changes) if given_object else set()
    text = f" {json.dumps(given_object, indent=indent)}"
    texts = {name: json.dumps(value) for name, value in changes.items()}
    edited = edit_read(text, read_value(text), texts, removed)
    assert json.loads(edited) == json.loads(edit_object(text, 0, texts, removed))
    assert list(json.loads(edited)) == list(json.loads(edit_object(text, 0, texts, removed)))


def test_other_numbers_keep_their_form_and_order():
    text = '{"a": 1.10, "z": 0.12345678901234567890123, "n": 1E400, "from": 3}'
    assert edit_object(text, 0, {"from": "0"}) == ('{"a":1.10,"z":0.12345678901234567890123,"n":1E400,"from":0}')


def test_parts_are_replaced_by_place():
    assert replace("abcdef", [(4, 5, "-"), (0, 1, "XX")]) == "XXbcd-f"


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "{", '{"a"}', '{"a":1', '{"a":1]', "[1]", "{1:2}", "", '{"a":}'])
def test_a_broken_object_is_refused(text):
    with pytest.raises(InputError):
        read_members(text)


@pytest.mark.parametrize("text", ["[1", "[1 2]", "{}", "[,]", ""])
def test_a_broken_array_is_not_read(text):
    with pytest.raises(InputError):
        read_array(text)


def test_a_value_that_is_nested_too_deep_is_refused():
    with pytest.raises(InputError):
        read_value("[" * 200_000)
