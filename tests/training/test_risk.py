"""Minimum risk training, with the narrow network of `conftest.py`."""

import numpy as np
import pytest

from bespeak.training.packing import alternatives

torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
pytestmark = pytest.mark.train

from bespeak.records import Profile, Turn  # noqa: E402
from bespeak.rewriting.decoding import prompt  # noqa: E402
from bespeak.training.fit import Fit  # noqa: E402
from bespeak.training.network import new_adapter  # noqa: E402
from bespeak.training.risk import PERSON, Choice, OrdinaryPairs, minimum_risk, risk, risk_steps  # noqa: E402

BEFORE = Profile(turns=(Turn("Where do whales live?", "In the north.", "t"),))
TEXTS = ["What do they eat?", "What do whales eat?", "What do whales eat in the north?"]


def choice(tokenizer, texts=TEXTS, gains=(0.2, 0.4, 1.0), person=1):
    read = prompt(texts[0], BEFORE, tokenizer)
    return Choice(alternatives(read, texts, tokenizer), np.array(gains, np.float32), person)


def test_a_branch_is_as_likely_as_it_is_alone(network, tokenizer):
    adapter = new_adapter(network.shapes, 0)
    log_p, sizes = network.log_likelihoods(choice(tokenizer).sequence, adapter)
    read = prompt(TEXTS[0], BEFORE, tokenizer)
    for text, found, size in zip(TEXTS, log_p, sizes, strict=True):
        loss, n_tokens = network.loss([alternatives(read, [text], tokenizer)], adapter)
        assert float(found) == pytest.approx(-float(loss), rel=1e-5)
        assert int(size) == n_tokens


def test_risk_is_the_negative_expected_gain():
    log_p, sizes = torch.tensor([-4.0, -4.0]), torch.tensor([2.0, 4.0])
    assert float(risk(log_p, sizes, torch.tensor([1.0, 0.0]), 1)) == pytest.approx(-0.5 + PERSON)
    surer = torch.tensor([-4.0, -400.0])
    assert float(risk(surer, sizes, torch.tensor([1.0, 0.0]), 0)) == pytest.approx(-1 + PERSON * 2)


def test_candidates_with_gains_become_likelier(network, tokenizer, tmp_path):
    one = choice(tokenizer, ["What do they eat?", "What do whales eat?", "What do horses eat?"], (0.5, 0.0, 1.0), 0)
    objective = minimum_risk(network)
    start = {name: weight.clone() for name, weight in new_adapter(network.shapes, 0).items()}
    with torch.no_grad():
        before, _ = network.log_likelihoods(one.sequence, start)
    fit = Fit(objective, [[one]] * 12, tmp_path / "checkpoint.pt", "a run", start, 1)
    list(fit.run())
    with torch.no_grad():
        after, _ = network.log_likelihoods(one.sequence, fit.adapter)
    change = (after - before).tolist()
    assert change[2] > change[1]


def test_a_step_is_twelve_turns_and_two_parts_of_pairs(tokenizer):
    one, pairs = choice(tokenizer), [[choice(tokenizer).sequence] * n for n in (1, 2, 3)]
    steps = risk_steps([one] * 30, pairs)
    assert [sum(isinstance(part, Choice) for part in step) for step in steps] == [12, 12, 6]
    ordinary = [[part for part in step if isinstance(part, OrdinaryPairs)] for step in steps]
    assert [[len(part.sequences) for part in parts] for parts in ordinary] == [[1, 2], [3, 1], [2, 3]]
    assert [sum(part.weight for part in parts) for parts in ordinary] == [6, 6, 3]  # half of the turns'
    assert risk_steps([one], []) == [[one]]


def test_the_loss_of_a_step_is_the_mean_of_its_turns_and_half_that_of_its_pairs(network, tokenizer, tmp_path):
    turns = [choice(tokenizer), choice(tokenizer, gains=(1.0, 0.0, 0.0))]
    pairs = [[turns[0].sequence], [turns[1].sequence] * 2]
    start = new_adapter(network.shapes, 0)
    with torch.no_grad():
        loss, n_tokens = network.loss(pairs[0], start)
        log_p, sizes = network.log_likelihoods(turns[0].sequence, start)
        risks = [float(risk(log_p, sizes, torch.from_numpy(turn.gains), 1)) for turn in turns]
    fit = Fit(minimum_risk(network), risk_steps(turns, pairs), tmp_path / "checkpoint.pt", "a run", start, 2)
    (progress,) = fit.run()
    assert progress.loss == pytest.approx(sum(risks) / 2 + 0.5 * float(loss) / n_tokens, rel=1e-4)
    assert progress.n_targets == 6
