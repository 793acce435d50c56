"""What the notebooks share."""

import pytest
import torch

from logitmix_lite.lab.course import exercise


@pytest.mark.parametrize("answer, said", [
    (None, "not solved yet"),
    (torch.tensor([1.0, 2.0]), "right"),
    ([1, 2], "right"),
    (torch.tensor([-1.0, -2.0]), "the sign"),
    (torch.tensor([[1.0, 2.0]]), "look again"),  # the right numbers in the wrong shape
    (torch.tensor([1.0, float("nan")]), "look again"),
    (torch.tensor([1.0, 2.001]), "look again"),
])  # fmt: skip
def test_an_exercise_names_the_mistake(answer, said):
    check = exercise(3, torch.tensor([1.0, 2.0]), {"the sign": torch.tensor([-1.0, -2.0])}, "look again")
    assert check(answer) == f"exercise 3: {said}"
