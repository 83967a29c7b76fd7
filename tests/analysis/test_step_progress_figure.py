"""The figure of slopes and curvatures: its rows are named as a reader says them."""

import pytest

from analysis.figures.step_progress import name


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (("linear", "agzo", 16, "frozen"), "AGZO, r = 16"),
        (("linear", "mezo", 1, "frozen"), "MeZO"),
        (("all", "lozo", 1, "seen"), "LOZO, seen"),
        (("role up_proj", "mezo", 1, "tuned"), "up_proj, MeZO"),
        (("depth 11-11", "mezo", 1, "tuned"), "layer 11, MeZO"),
        (("depth 5-9", "agzo", 1, "tuned"), "layers 5 to 9, AGZO"),
    ],
)
def test_a_row_is_named_by_what_is_perturbed_and_the_method(case, words):
    assert name(case) == words
