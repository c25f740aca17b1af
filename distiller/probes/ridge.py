"""Linear classifiers by ridge regression, from streamed sums."""

import torch
from torch import Tensor
from torch.nn import functional as F

RIDGE = 1e-3  # relative to the mean variance of the inputs


class Ridge:
    """Ridge regression onto one-hot classes from streamed sums: memory does not grow with the data."""

    def __init__(self, width: int, classes: int) -> None:
        self.inputs = torch.zeros(width + 1, width + 1, dtype=torch.float64)  # sum of x x', x extended by a constant 1
        self.outputs = torch.zeros(width + 1, classes, dtype=torch.float64)  # sum of x y'

    def add(self, inputs: Tensor, classes: Tensor) -> None:
        """inputs (example, channel), classes (example,)."""
        extended = F.pad(inputs.double(), (0, 1), value=1.0)
        self.inputs += extended.T @ extended
        self.outputs.T.index_add_(0, classes, extended)

    def solve(self) -> Tensor:
        """(channel + 1, class), the constant unpenalised and inputs on their own scale."""
        count = self.inputs[-1, -1]
        mean = self.inputs[-1] / count
        spread = (self.inputs.diagonal() / count - mean.square()).clamp(min=0.0)
        scale = spread[:-1].mean().clamp(min=1e-12)
        penalty = torch.full_like(mean, float(RIDGE * scale * count))
        penalty[-1] = 1e-9 * count
        return torch.linalg.solve(self.inputs + penalty.diag(), self.outputs)


def accuracy(weights: Tensor, inputs: Tensor, classes: Tensor) -> tuple[int, int]:
    """Number of correct examples, and of all."""
    scores = inputs.double() @ weights[:-1] + weights[-1]
    return int((scores.argmax(dim=1) == classes).sum()), len(classes)
