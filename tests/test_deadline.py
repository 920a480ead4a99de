import math
import threading
import time

import pytest
from test_encoder import make_tiny

from bespeak.deadline import Deadline, Late
from bespeak.errors import ModelError
from bespeak.models.encoder import OnnxEncoder, load_encoder

FOREVER_MS = 600_000


def test_a_deadline_in_the_future_is_not_over():
    deadline = Deadline.after_ms(FOREVER_MS)
    assert not deadline.over
    assert 0 < deadline.left_s <= FOREVER_MS / 1000
    deadline.check()


@pytest.mark.parametrize("budget_ms", [0, -5])
def test_a_budget_of_zero_or_less_is_over_at_once(budget_ms):
    deadline = Deadline.after_ms(budget_ms)
    assert (deadline.over, deadline.left_s) == (True, 0)
    with pytest.raises(Late):
        deadline.check()


def test_without_a_budget_only_cancelling_ends_it():
    deadline = Deadline.after_ms(None)
    assert (deadline.over, deadline.left_s) == (False, math.inf)
    deadline.cancel()
    assert deadline.over


def test_the_current_deadline_is_that_of_the_block():
    outer, inner = Deadline.after_ms(FOREVER_MS), Deadline.after_ms(None)
    assert Deadline.current().at == math.inf
    with outer.held():
        assert Deadline.current() is outer
        with inner.held():
            assert Deadline.current() is inner
        assert Deadline.current() is outer
    assert Deadline.current().at == math.inf


def test_an_inner_deadline_never_outlasts_its_outer_one():
    with Deadline.after_ms(FOREVER_MS).held():
        outer = Deadline.current()
        inner = Deadline.after_ms(2 * FOREVER_MS)
        sooner = Deadline.after_ms(FOREVER_MS / 2)
    assert inner.at == outer.at
    assert sooner.at < outer.at
    sooner.cancel()
    assert not outer.over
    outer.cancel()
    assert inner.over


def test_a_deadline_does_not_hold_in_other_threads():
    found = []
    with Deadline.after_ms(0).held():
        thread = threading.Thread(target=lambda: found.append(Deadline.current().over))
        thread.start()
        thread.join()
    assert found == [False]


@pytest.mark.parametrize("budget_ms", [0, 20])
def test_the_action_runs_when_time_is_over(budget_ms):
    told = threading.Event()
    with Deadline.after_ms(budget_ms).ending(told.set):
        assert told.wait(30)


@pytest.mark.parametrize("cancelled", ["outer", "inner"])
def test_the_action_runs_on_cancelling(cancelled):
    outer = Deadline.after_ms(FOREVER_MS)
    with outer.held():
        inner = Deadline.after_ms(FOREVER_MS)
    told = threading.Event()
    with inner.ending(told.set):
        assert not told.is_set()
        {"outer": outer, "inner": inner}[cancelled].cancel()
        assert told.is_set()


def test_the_action_does_not_run_after_the_block():
    deadline = Deadline.after_ms(10)
    told = threading.Event()
    with deadline.ending(told.set):
        pass
    time.sleep(0.05)
    deadline.cancel()
    assert not told.is_set()


def loop_model(folder):
    """A model whose single run takes very long: ten million times around a loop."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    make_tiny(folder, pooling="none")

    def value(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Mul", ["x", "one"], ["y"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, [1, 2])],
        [value("go_on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, [1, 2])],
    )
    import numpy as np

    constants = {
        "times": np.array(10_000_000, np.int64),
        "yes": np.array(True),
        "start": np.ones((1, 2), np.float32),
        "one": np.ones((1, 2), np.float32),
    }
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "yes", "start"], ["out"], body=body)],
        "loop",
        [value("input_ids", TensorProto.INT64, ["n_texts", "n_tokens"])],
        [value("out", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    return OnnxEncoder(loop_model(tmp_path_factory.mktemp("endless")))


def test_a_model_is_ended_in_the_middle_of_a_run(endless, capfd):
    with Deadline.after_ms(50).held(), pytest.raises(Late):
        endless.encode(["north"])
    assert capfd.readouterr() == ("", "")


def test_a_cancel_ends_a_model_in_the_middle_of_a_run(endless):
    deadline = Deadline.after_ms(None)
    timer = threading.Timer(0.05, deadline.cancel)
    timer.start()
    with deadline.held(), pytest.raises(Late):
        endless.encode(["north"])
    timer.join()


def test_an_encoder_works_again_after_a_run_was_ended():
    encoder = load_encoder()
    before = encoder.encode(["steam engines"])
    with Deadline.after_ms(0).held(), pytest.raises(Late):
        encoder.encode(["steam engines"])
    assert (encoder.encode(["steam engines"]) == before).all()


def test_a_models_own_error_is_not_reported_as_late(tmp_path):
    """The tokenizer has a word for which the model's table of five has no row."""
    words = make_tiny(tmp_path) / "tokenizer.json"
    words.write_text(words.read_text().replace('"both":4', '"both":40').replace('"both": 4', '"both": 40'))
    encoder = OnnxEncoder(tmp_path)
    with Deadline.after_ms(FOREVER_MS).held(), pytest.raises(ModelError):
        encoder.encode(["both"])
