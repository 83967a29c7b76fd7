"""The map of a deep model's layers: each value at its block and role, and nothing made up."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.figures.layer_map import block, draw_map, role

NAMES = [f"model.layers.{n}.{part}.weight" for n in (3, 11) for part in ("attn.q_proj", "mlp.up")]


def test_a_value_lies_at_its_block_and_role():
    axes = Figure().add_subplot()
    values = dict(zip(NAMES[:3], (0.1, 0.2, 0.3), strict=True))  # block 11 has no up
    draw_map(axes, values, "a map", 0.0, 1.0)
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_array_equal(shown, [[0.1, 0.3], [0.2, np.nan]])
    assert [each.get_text() for each in axes.get_yticklabels()] == ["q_proj", "up"]  # unique so
    assert [each.get_text() for each in axes.get_xticklabels()] == ["3", "11"]
    assert axes.images[0].get_clim() == (0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("model.layers.11.mlp.up.weight", ("11", "mlp.up")), ("lm_head.weight", ("", "lm_head"))],
)
def test_names_are_read(name, wanted):
    assert (block(name), role(name)) == wanted


def test_two_weights_of_one_last_name_have_a_place_each():
    axes = Figure().add_subplot()
    values = {"h.0.attn.c_proj.weight": 0.1, "h.0.mlp.c_proj.weight": 0.9}
    draw_map(axes, values, "a map", 0.0, 1.0)
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.1], [0.9]])
    shown = [each.get_text() for each in axes.get_yticklabels()]
    assert shown == ["attn.c_proj", "mlp.c_proj"]
