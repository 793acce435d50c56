"""Several processes training one policy, started by `accelerate launch`; one process is the case of one rank.

Every rank holds all weights, samples and trains its share of the prompts, and adds up gradients with the others: the
step is that of one process, whatever the number of ranks."""

from collections.abc import Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env, reduce
from torch import Tensor


class Ranks:
    """This process among those of the run.

    Raises ValueError where `accelerate launch` was told to bring its own FSDP or DeepSpeed, which would go unused."""

    def __init__(self):
        for name in ("FSDP", "DEEPSPEED"):
            if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
                raise ValueError(
                    f"accelerate's configuration asks for {name}, which would not be used: launch with one of "
                    "configs/: every process holds all weights"
                )
        self.state = PartialState(cpu=not torch.cuda.is_available())
        self.rank, self.count = self.state.process_index, self.state.num_processes
        self.main = self.state.is_main_process

    def share(self, items: Sequence) -> Sequence:
        """This rank's part of the items, in order. ValueError where they can't be shared evenly."""
        if len(items) % self.count:
            raise ValueError(f"{len(items)} prompts a step can't be shared by {self.count} processes: change --prompts")
        size = len(items) // self.count
        return items[self.rank * size : (self.rank + 1) * size]

    def sum(self, *values: float) -> list[float]:
        """Each value summed over ranks."""
        return reduce(torch.tensor(values, dtype=torch.float64, device=self.device), "sum").tolist()

    def max(self, value: float) -> float:
        """The largest of the ranks' values."""
        return max(self.gather(value))

    def gather(self, thing) -> list:
        """What each rank passes, in order of ranks."""
        return gather_object([thing])

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over ranks; a rank without one adds nothing."""
        if self.count == 1:
            return
        for parameter in parameters:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(grad, "sum")

    def print(self, text: str) -> None:
        """Print once, whatever the number of ranks."""
        self.state.print(text)

    def wait(self) -> None:
        """Go on when every rank has come here."""
        self.state.wait_for_everyone()

    @property
    def device(self) -> torch.device:
        return self.state.device
