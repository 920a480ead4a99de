from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bespeak.errors import ModelError, StoreError
from bespeak.models.catalogue import ModelRecord, describe_files, write_record
from bespeak.profiles.stores.text import read_rewrite, rewrite_text
from bespeak.records import Preference, Profile, Rewrite, Statement, Term, Turn, UserKey
from bespeak.rewriting.decoding import DECODING
from bespeak.rewriting.model import MODEL, find_model, made_from
from bespeak.rewriting.opening import choose_rewriter
from bespeak.rewriting.rewriter import LASTING, CachedRewriter, LastTurn, Unchanged, run_rewriter
from bespeak.statuses import Reason, RewriteStatus
from fakes import ADA, ScriptedRewriter

PROFILE = Profile(ADA, turns=(Turn("who broke up the band", "Frank Zappa, in late 1969", "t1"),), version="p1")


class Kept(dict):
    get_rewrite = dict.get
    put_rewrite = dict.__setitem__


class KeptAsText(Kept):
    """Keeps rewrites as the stores do."""

    def get_rewrite(self, key):
        return read_rewrite(self[key]) if key in self else None

    def put_rewrite(self, key, rewrite):
        self[key] = rewrite_text(rewrite)


class Broken(Kept):
    def __init__(self, reads=True):
        self.reads = reads

    def get_rewrite(self, key):
        if self.reads:
            raise StoreError("the store is locked")

    def put_rewrite(self, key, rewrite):
        raise StoreError("the store is full")


class Counting(ScriptedRewriter):
    """Counts what it is asked."""

    def __init__(self, version="1", status=RewriteStatus.FULL, reason=""):
        super().__init__({})
        self.version, self.status, self.reason, self.asked = version, status, reason, 0

    def rewrite(self, query, profile, budget_ms=None):
        self.asked += 1
        text = f"{query} Zappa" if self.status == "full" else query
        return Rewrite(query, text, status=self.status, reason=self.reason, model=f"scripted {self.version}")

    def forget(self, user):
        pass


class Faulty(ScriptedRewriter):
    def __init__(self, error):
        super().__init__({})
        self.error = error

    def rewrite(self, query, profile, budget_ms=None):
        raise self.error

    def forget(self, user):
        pass


@pytest.mark.parametrize("rewriter", [Unchanged(), LastTurn(), Counting(), CachedRewriter(Counting(), Kept())])
def test_every_rewriter_keeps_the_query_and_names_itself(rewriter):
    rewrite = rewriter.rewrite("and when?", PROFILE, 100)
    assert rewrite.query == "and when?"
    assert rewrite.model == f"{rewriter.name} {rewriter.version}"
    assert rewrite.status in ("full", "off")


def test_unchanged_is_off():
    assert Unchanged().rewrite("and when?", PROFILE) == Rewrite("and when?", "and when?", status="off", model="none 1")


def test_last_turn_adds_its_salient_words_with_their_source():
    rewrite = LastTurn(3).rewrite("when did the band play?", PROFILE)
    assert rewrite.text == "when did the band play? broke up Zappa"
    assert rewrite.terms[-1] == Term("Zappa", "turn", "t1", "Frank Zappa, in late 1969")


def test_last_turn_has_nothing_to_add_without_a_turn():
    profile = replace(PROFILE, turns=(), statements=(Statement("I am vegetarian.", "s1"),))
    assert not LastTurn().rewrite("and when?", profile).changed


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ModelError("the model is damaged"), "the model is damaged"), (ValueError("odd"), "ValueError: odd")],
)
def test_a_fault_leaves_the_query(error, reason):
    rewrite = run_rewriter("and when?", PROFILE, Faulty(error), 100)
    assert (rewrite.text, rewrite.status, rewrite.reason) == ("and when?", "failed", reason)


def test_a_rewrite_is_made_once():
    rewriter = Counting()
    cached = CachedRewriter(rewriter, Kept())
    first, second = (cached.rewrite("and when?", PROFILE) for _ in range(2))
    assert rewriter.asked == 1
    assert (first.status, second) == ("full", replace(first, status="cached"))


@pytest.mark.parametrize("kept", [Kept, KeptAsText])
def test_a_text_that_is_no_rewrite_is_not_made_again(kept):
    rewriter = Counting(status=RewriteStatus.UNUSABLE, reason=Reason.STRAINED)
    cached = CachedRewriter(rewriter, kept())
    first, second = (cached.rewrite("and when?", PROFILE) for _ in range(2))
    assert rewriter.asked == 1
    assert first == second
    assert second.status is RewriteStatus.UNUSABLE
    assert (second.text, second.reason) == ("and when?", Reason.STRAINED)


def test_words_in_place_of_an_unusable_text_keep_their_reason():
    cached = CachedRewriter(Counting(reason=Reason.NO_END), KeptAsText())
    first, second = (cached.rewrite("and when?", PROFILE) for _ in range(2))
    assert (first.status, first.reason) == ("full", "no_end")
    assert second == replace(first, status=RewriteStatus.CACHED)


@pytest.mark.parametrize(
    "other",
    [
        replace(PROFILE, user=UserKey("shop", "ada")),
        replace(PROFILE, user=UserKey("", "bob")),
        replace(PROFILE, statements=(Statement("I am vegetarian.", "s1"),)),
        replace(PROFILE, turns=(replace(PROFILE.turns[0], response="In 1969"),)),
    ],
)
def test_the_cache_keeps_tenants_users_and_profiles_apart(other):
    rewriter = Counting()
    cached = CachedRewriter(rewriter, Kept())
    cached.rewrite("and when?", PROFILE)
    assert cached.rewrite("and when?", other).status == "full"
    assert rewriter.asked == 2


def test_what_a_rewriter_does_not_read_makes_no_rewrite_stale():
    rewriter = Counting()
    cached = CachedRewriter(rewriter, Kept())
    cached.rewrite("and when?", PROFILE)
    liked = Preference("d1", "Joe's Garage", 0.3, "click", "c1", datetime(2026, 1, 1, tzinfo=UTC))
    assert cached.rewrite("and when?", replace(PROFILE, preferences=(liked,), version="p2")).status == "cached"


def test_the_cache_keeps_queries_and_models_apart():
    kept = Kept()
    CachedRewriter(Counting("1"), kept).rewrite("and when?", PROFILE)
    assert CachedRewriter(Counting("1"), kept).rewrite("And when?", PROFILE).status == "full"
    assert CachedRewriter(Counting("2"), kept).rewrite("and when?", PROFILE).status == "full"


@pytest.mark.parametrize("status", sorted(set(RewriteStatus) - set(LASTING)))
def test_only_rewrites_that_would_come_out_the_same_are_kept(status):
    kept = Kept()
    assert CachedRewriter(Counting(status=status), kept).rewrite("and when?", PROFILE).status == status
    assert not kept


def test_rewrites_for_strangers_are_not_cached():
    kept = Kept()
    CachedRewriter(Counting(), kept).rewrite("and when?", replace(PROFILE, user=None))
    assert not kept


@pytest.mark.parametrize(("reads", "note"), [(True, "the store is locked"), (False, "the store is full")])
def test_a_broken_cache_loses_no_rewrite(reads, note):
    rewrite = CachedRewriter(Counting(), Broken(reads)).rewrite("and when?", PROFILE)
    assert (rewrite.text, rewrite.status, rewrite.reason) == ("and when? Zappa", "full", f"not kept: {note}")


def test_rewriters_are_chosen_by_name(tmp_path):
    assert choose_rewriter("none", tmp_path).name == "none"
    assert choose_rewriter("last-turn", tmp_path).name == "last-turn"


def test_a_model_that_is_not_built_says_how_to_build_it(tmp_path):
    with pytest.raises(ModelError, match=r"not built in .*: run 'bespeak models build'"):
        choose_rewriter("model", tmp_path)


@pytest.fixture
def built(tmp_path):
    """A cache with a folder that looks like the built model."""
    folder = tmp_path / "models" / MODEL
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    files = describe_files(folder)
    write_record(folder, ModelRecord(MODEL, "rewriter", files, "terms", "source", made_from(None)))
    return tmp_path


def test_a_built_model_is_found_with_its_version(built):
    folder, version = find_model(built)
    assert folder == built / "models" / MODEL
    assert choose_rewriter("model", built).version == f"{version}.{DECODING}"
    assert choose_rewriter("model", built, grounded=False).version != version


@pytest.mark.parametrize("content", [b"weigh", b"wEights", b"weights and more"])
def test_a_damaged_model_says_so(built, content):
    (built / "models" / MODEL / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="run 'bespeak models build'"):
        choose_rewriter("model", built)


def test_a_model_built_from_older_parts_must_be_built_again(built):
    folder = built / "models" / MODEL
    write_record(folder, ModelRecord(MODEL, "rewriter", describe_files(folder), "terms", "source", "of old"))
    with pytest.raises(ModelError, match="older parts"):
        choose_rewriter("model", built)


def test_invalid_model_files_give_a_failed_rewrite(built):
    rewrite = run_rewriter("and when?", PROFILE, choose_rewriter("model", built))
    assert (rewrite.text, rewrite.status) == ("and when?", "failed")
    assert "bespeak models build" in rewrite.reason
