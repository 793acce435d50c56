"""The wall of problems: each square in the group that the paper's table counts it in."""

import matplotlib.pyplot as plt
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from logitmix_lite.lab.plots import MIX, REF, THETA
from logitmix_lite.lab.wall import GROUPS, wall, who_solves
from logitmix_lite.stats import contingency


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_groups_are_the_contingency_table_and_the_mixture_splits_neither(solved):
    theta, ref, mixture = zip(*solved, strict=True)
    counts = {name: list(who_solves(theta, ref, mixture)).count(k) for k, name in enumerate(GROUPS)}
    table = contingency(theta, ref)
    assert [counts[name] for name in ("both", "only theta", "only the anchor")] == list(table.values())[:3]
    assert counts["only the mixture"] == sum(m and not (t or r) for t, r, m in solved)
    assert counts["nobody"] == sum(not any(who) for who in solved)


def test_squares_stand_in_order_and_have_the_colour_of_who_solves_the_problem():
    groups = who_solves([1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [1, 1, 1, 0, 1])
    figure, ax = plt.subplots()
    wall(ax, groups, order=[3, 2, 1, 0, 4], columns=3)
    squares = [patch for patch in ax.patches if hasattr(patch, "get_width")]
    assert [to_hex(patch.get_facecolor()) for patch in squares] == ["#ffffff", MIX[0], REF[0], THETA[0], THETA[0]]
    assert [patch.get_xy() for patch in squares] == [(0, 0), (1, 0), (2, 0), (0, -1), (1, -1)]
    [half] = [patch for patch in ax.patches if not hasattr(patch, "get_width")]  # both: half theta's, half the anchor's
    assert to_hex(half.get_facecolor()) == REF[0] and tuple(half.get_xy()[0]) == (1, -1)
    plt.close(figure)
