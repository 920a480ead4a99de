import multiprocessing
import stat

import pytest
from filelock import Timeout

from bespeak.files import locked, make_private_file, make_private_folder, rename_durably, replace_folder, replacing


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "files"
    made.mkdir()
    return made


def test_a_file_is_replaced_as_a_whole_and_private_to_its_owner(folder):
    path = folder / "kept.json"
    path.write_text("old")
    with replacing(path, "w", encoding="utf-8", durable=True) as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in folder.iterdir()] == ["kept.json"]


def test_an_error_leaves_the_file_as_it_was_and_nothing_beside_it(folder):
    path = folder / "kept.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path, "w") as file:
        file.write(f"half{1 / 0}")
    assert [(found.name, found.read_text()) for found in folder.iterdir()] == [("kept.json", "old")]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_replaces_another(folder, there):
    made, target = folder / "made", folder / "target"
    made.mkdir()
    (made / "new").touch()
    if there:
        target.mkdir()
        (target / "old").touch()
    replace_folder(made, target)
    assert [found.name for found in target.iterdir()] == ["new"]
    assert [found.name for found in folder.iterdir()] == ["target"]


def hold(path, held, done):
    with locked(path):
        held.set()
        done.wait(30)


def test_a_lock_is_held_by_one_process_at_a_time_until_it_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "lock", held, done))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(Timeout), locked(tmp_path / "lock", wait_s=0):
            pass
        other.kill()
        other.join(30)
        with locked(tmp_path / "lock", wait_s=10):
            pass
    finally:
        other.kill()
        other.join(30)


def test_a_finished_file_replaces_another(folder):
    made, path = folder / "made", folder / "path"
    made.write_text("new")
    path.write_text("old")
    rename_durably(made, path)
    assert [(found.name, found.read_text()) for found in folder.iterdir()] == [("path", "new")]


def test_what_is_made_private_is_its_owners_alone_and_what_is_there_stays_as_it_is(folder):
    make_private_folder(folder / "above" / "inside")
    make_private_file(folder / "above" / "inside" / "data.db")
    assert mode_of(folder / "above" / "inside") == 0o700
    assert mode_of(folder / "above" / "inside" / "data.db") == 0o600

    shared = folder / "shared.db"
    shared.write_text("kept")
    shared.chmod(0o660)
    make_private_file(shared)
    make_private_folder(folder)
    assert (mode_of(shared), shared.read_text()) == (0o660, "kept")


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)
