"""Bodies packed by gzip."""

import gzip

import pytest

from bespeak.errors import InputError
from bespeak.proxy.http.gzip import unpack


def test_a_packed_body_is_read_completely_or_refused():
    one, two = gzip.compress(b"{}\n"), gzip.compress(b"{}\n")
    assert unpack(one, 100) == b"{}\n"
    for bad in (one + two, one + b"x", one[:-1], b"", b"{}", gzip.compress(bytes(1000))):
        with pytest.raises(InputError):
            unpack(bad, 100)
