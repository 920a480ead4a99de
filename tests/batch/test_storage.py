"""Files in a shared folder and in object storage pass the same contract."""

from __future__ import annotations

import os

import pytest

from bespeak.errors import InputError, UsageError

pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `ray`)")

from bespeak.batch.storage import Storage, shown

S3 = os.environ.get("BESPEAK_TEST_S3", "")


def place(kind, folder, name):
    match kind:
        case "path":
            return f"{folder}/{name}"
        case "file URI":
            return f"file://{folder}/{name}"
        case _:
            uri, _, query = S3.partition("?")
            return f"{uri}{folder}/{name}?{query}"


# Object storage needs a server and credentials, which a checkout cannot provide: name yours to run this.
@pytest.fixture(params=[
    "path", "file URI",
    pytest.param("S3", marks=pytest.mark.skipif(not S3, reason="no object storage (BESPEAK_TEST_S3 holds no URI)")),
])  # fmt: skip
def storage(request, tmp_path):
    return Storage(place(request.param, tmp_path, "out.jsonl"))


def test_what_is_written_is_read(storage):
    storage.write(storage.name, b"one\ntwo\n", ".new")
    assert storage.exists(storage.name)
    assert storage.size() == 8
    assert storage.read(storage.name) == b"one\ntwo\n"
    with storage.open() as file:
        file.seek(4)
        assert (file.peek(3)[:3], file.readline()) == (b"two", b"two\n")
    storage.write(storage.name, b"three", ".new")
    assert storage.read(storage.name) == b"three"


def test_a_missing_file_is_none(storage):
    assert storage.read(storage.name) is None
    assert not storage.exists(storage.name)
    assert storage.names(storage.name + ".parts") == set()
    with pytest.raises(InputError, match="cannot read"):
        storage.open()
    storage.delete(storage.name)


def test_folders_are_created_listed_and_deleted(storage):
    folder = storage.name + ".parts"
    for name in ("00000001-a", "00000000-b"):
        storage.write(f"{folder}/{name}", b"x", ".one")
    assert storage.names(folder) == {"00000000-b", "00000001-a"}
    storage.delete(f"{folder}/00000001-a")
    assert storage.names(folder) == {"00000000-b"}
    storage.delete(folder)
    assert storage.names(folder) == set()


def test_an_error_leaves_the_old_file(storage):
    """Object storage has no second name to write to until then, so there the incomplete file is deleted."""
    storage.write(storage.name, b"before", ".new")

    def half():
        with storage.writing(storage.name, ".new") as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert storage.read(storage.name) in ((None,) if storage.shown.startswith("s3:") else (b"before",))
    assert not storage.exists(storage.name + ".new")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    storage = Storage(f"{tmp_path}/file/out.jsonl")
    with pytest.raises(InputError, match=r"cannot write .*out\.jsonl .*run the same command again"):
        storage.write(storage.name, b"x", ".new")


@pytest.mark.parametrize("uri", ["nowhere://key:secret@host/out.jsonl", "s3:///"])
def test_an_unknown_storage_is_refused_without_showing_secrets(uri):
    with pytest.raises(UsageError, match="neither a path nor a URI of a storage that pyarrow knows") as raised:
        Storage(uri)
    assert "secret" not in str(raised.value)


def test_a_uri_is_shown_without_secrets():
    assert shown("s3://key:secret@bucket/a/out.gz?region=x") == "s3://bucket/a/out.gz"
    assert shown("/a/out.gz") == "/a/out.gz"
