"""Fitting, with the narrow network of `conftest.py`."""

import random

import numpy as np
import pytest

from bespeak.errors import ModelError
from bespeak.models.catalogue import asset_folder
from bespeak.rewriting.gemma import ADAPTED
from bespeak.rewriting.model import MODEL
from bespeak.training.packing import Layout, pack
from bespeak.training.pairs import Conversation, PastTurn, Target

torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
pytestmark = pytest.mark.train

from bespeak.training.fit import PAIRS, Fit, Schedule, cross_entropy, mean_cross_entropy, rate, steps  # noqa: E402
from bespeak.training.network import RANK, Network, new_adapter, to_arrays  # noqa: E402

TOPICS = ("whales", "glaciers", "bridges", "violins", "comets", "orchids", "castles", "beetles")


@pytest.fixture(scope="module")
def sequences(tokenizer):
    layout, rng = Layout(tokenizer), random.Random(0)
    packed = []
    for number in range(240):
        topic = TOPICS[number % len(TOPICS)]
        turns = (PastTurn(f"Where do {topic} live?", f"In the north, {topic} do."), PastTurn("Why there?", ""))
        targets = (
            Target(1, "Why there?", f"Why do {topic} live in the north?"),
            Target(2, "How old are they?", f"How old are {topic}?"),
        )
        packed += pack(Conversation("own", turns, targets, ("I whistle.",) * (number % 3)), layout, None)
    rng.shuffle(packed)
    return packed


def random_adapter(network):
    adapter = new_adapter(network.shapes, 3)
    generator = torch.Generator().manual_seed(4)
    return {name: 0.1 * torch.randn(weight.shape, generator=generator) for name, weight in adapter.items()}


def test_an_adapter_has_the_form_of_the_shipped_one(network):
    with np.load(asset_folder("onnx_models") / MODEL / "adapter.npz") as shipped:
        made = to_arrays(new_adapter(network.shapes, 0))
        assert set(made) == set(shipped.files)
        assert {array.dtype for array in made.values()} == {shipped[shipped.files[0]].dtype}
        assert {array.shape[0] for name, array in made.items() if name.endswith(".A")} == {RANK}


def test_a_new_adapter_changes_nothing(network, sequences):
    without, n_tokens = network.loss(sequences[:3], {})
    assert float(network.loss(sequences[:3], new_adapter(network.shapes, 1))[0]) == float(without)
    assert float(network.loss(sequences[:3], random_adapter(network))[0]) != float(without)
    assert n_tokens == sum(int((sequence.labels >= 0).sum()) for sequence in sequences[:3])


def test_a_packed_conversation_costs_what_its_prompts_cost(network, tokenizer):
    """Branches neither see nor disturb one another."""
    layout, adapter = Layout(tokenizer), random_adapter(network)
    turns = (PastTurn("Where do whales live?", "In the north."), PastTurn("Why there?", ""))
    targets = (
        Target(1, "Why there?", "Why do whales live in the north?"),
        Target(1, "Who sang?", "Who sang?", "switch"),
        Target(2, "How old are they?", "How old are whales?"),
    )
    whole = Conversation("own", turns, targets, ("I whistle.",))
    (packed,) = pack(whole, layout, None)
    alone = [
        pack(Conversation("own", turns[: target.n_before], (target,), whole.statements), layout, None)[0]
        for target in targets
    ]
    together, n_tokens = network.loss([packed], adapter)
    apart = [network.loss([sequence], adapter) for sequence in alone]
    assert n_tokens == sum(n for _, n in apart)
    assert float(together) == pytest.approx(sum(float(loss) for loss, _ in apart), rel=1e-5)
    # Nor do sequences that lie beside one another.
    assert float(network.loss(alone, adapter)[0]) == pytest.approx(float(together), rel=1e-5)


def test_gradients_are_those_of_small_steps(network, sequences):
    adapter = {name: weight.double().requires_grad_() for name, weight in random_adapter(network).items()}
    doubled = Network({})
    doubled._weights = {name: weight.double() for name, weight in network._weights.items()}
    name = f"model.layers.9.{ADAPTED['ffn_down']}.A"
    loss, _ = doubled.loss(sequences[:1], adapter)
    (gradient,) = torch.autograd.grad(loss, [adapter[name]])
    way = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        up, _ = doubled.loss(sequences[:1], adapter | {name: adapter[name] + step * way})
        down, _ = doubled.loss(sequences[:1], adapter | {name: adapter[name] - step * way})
    assert float((gradient * way).sum()) == pytest.approx(float(up - down) / (2 * step), rel=1e-4)


def run(network, sequences, checkpoint, n_steps=None, threads=2, name="a run"):
    start = new_adapter(network.shapes, 0)
    fit = Fit(cross_entropy(network), steps(sequences), checkpoint, name, start, threads, checkpoint_steps=2)
    for progress in fit.run():
        if progress.step == n_steps:
            break
    return fit


def same(one, other):
    return all(torch.equal(one.adapter[name], other.adapter[name]) for name in one.adapter)


def test_the_loss_falls(network, sequences, tmp_path):
    fit = run(network, sequences[:150], tmp_path / "checkpoint.pt")
    assert (
        mean_cross_entropy(network, sequences[150:], fit.adapter, 2)
        < mean_cross_entropy(network, sequences[150:], {}, 2) - 0.1
    )


def test_an_interrupted_run_reaches_the_same_adapter(network, sequences, tmp_path):
    n_steps = len(steps(sequences[:120]))
    unbroken = run(network, sequences[:120], tmp_path / "unbroken.pt")
    run(network, sequences[:120], tmp_path / "broken.pt", 3)
    start = new_adapter(network.shapes, 1)  # what the checkpoint holds counts
    resumed = Fit(cross_entropy(network), steps(sequences[:120]), tmp_path / "broken.pt", "a run", start, 2)
    assert resumed.step == 2  # what came after the last checkpoint is done again
    assert [progress.step for progress in resumed.run()][-1] == n_steps
    assert same(resumed, unbroken)


def test_an_incomplete_checkpoint_is_not_used(network, sequences, tmp_path):
    (tmp_path / "checkpoint.pt.partial").write_bytes(b"half")
    start = new_adapter(network.shapes, 0)
    assert Fit(cross_entropy(network), steps(sequences[:120]), tmp_path / "checkpoint.pt", "a run", start, 2).step == 0


def test_the_number_of_threads_changes_only_the_time(network, sequences, tmp_path):
    one = run(network, sequences[:40], tmp_path / "one.pt", threads=1)
    assert same(one, run(network, sequences[:40], tmp_path / "three.pt", threads=3))


def test_a_checkpoint_of_another_run_is_refused(network, sequences, tmp_path):
    run(network, sequences[:30], tmp_path / "checkpoint.pt")
    with pytest.raises(ModelError, match="give another --out"):
        run(network, sequences[:30], tmp_path / "checkpoint.pt", name="another")


def test_a_damaged_checkpoint_is_reported(network, sequences, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ModelError, match="delete it to start again"):
        run(network, sequences[:30], tmp_path / "checkpoint.pt")


def test_the_rate_rises_and_falls():
    found = [rate(step, 100) / PAIRS.highest for step in range(100)]
    assert found[0] == pytest.approx(1 / 25)
    assert found.index(max(found)) in (20, 21, 22, 23, 24)
    assert found[50] == pytest.approx(0.5)
    assert found[-1] == pytest.approx(0.03)


def test_a_rate_may_fall_slowly_and_then_steeply():
    schedule = Schedule(2.0, 1, 0.01, bend=(0.8, 0.5))
    found = [rate(step, 100, schedule) / 2 for step in (0, 40, 80, 90, 99)]
    assert found == pytest.approx([1, 0.75, 0.5, 0.25, 0.025])
    assert [rate(step, 100, Schedule(2.0, 1, 0.01)) for step in (20, 60)] == pytest.approx([1.6, 0.8])


def test_steps_hold_every_sequence_in_its_order(sequences):
    plan = steps(sequences)
    assert [sequence for step in plan for part in step for sequence in part] == sequences
    for step in plan[:-1]:
        assert len(step) == 4
    assert all(len(part) == 1 or sum(len(s.token_ids) for s in part) <= 600 for step in plan for part in step)
