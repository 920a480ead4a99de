import numpy as np
import pytest

from bespeak.evaluation.measures import Estimate, Gain
from bespeak.evaluation.plot import gain_figure
from bespeak.evaluation.systems import Cell


def cell(system, stage, gain=None):
    difference = None if gain is None else Gain(Estimate(gain, gain - 0.02, gain + 0.01), 0.0, 0.0)
    return Cell(system, stage, {}, difference, 9)


def test_a_plot_has_a_line_with_intervals_for_each_system_and_a_flat_one_without_history():
    cells = [
        cell("engine", "any"),
        cell("p", "any", 0.1),
        cell("u", "0", 0.0),
        cell("u", "1", 0.2),
        cell("u", "5", 0.3),
    ]
    axes = gain_figure(cells, "engine").axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert [list(lines[name]) for name in ("engine", "p", "u")] == [[0, 0], [0.1, 0.1], [0.0, 0.2, 0.3]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "5"]
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[corners[:, 0] == 2][:, 1] == pytest.approx([0.31, 0.28, 0.31], abs=0.04)
    assert np.ptp(corners[corners[:, 0] == 2][:, 1]) == pytest.approx(0.03)


def test_systems_with_different_lengths_of_history_share_their_axis():
    cells = [cell("u", "0", 0.0), cell("u", "1", 0.2), cell("v", "1", 0.1), cell("v", "9", 0.4)]
    axes = gain_figure(cells, "engine").axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "9"]
    assert list(axes.lines[2].get_xdata()) == [1, 2]
