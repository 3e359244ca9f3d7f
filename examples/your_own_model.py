"""Your own network and data: forget a few training examples, and see whether it worked.

Run it: ``python examples/your_own_model.py``. It takes a few seconds and writes ``report.html`` and weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import expunge
from expunge.training.checkpoint import save_weights

CLASSES = 4


class Network(nn.Module):
    """Any module will do; nothing has to be registered or subclassed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels; some labels are wrong, and those are the ones to forget."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    inputs = torch.randn(count, 8, generator=draws) + 2.0 * nn.functional.one_hot(labels, 8)
    return inputs, labels


def main() -> None:
    inputs, labels = examples(400, seed=0)
    mislabelled = torch.arange(0, 400, 20)
    labels[mislabelled] = (labels[mislabelled] + 1) % CLASSES
    train, test = (inputs, labels), examples(200, seed=1)

    # How the model is made. It serves to train it here, and to retrain the models to compare with.
    task = expunge.tasks.Classification(CLASSES)
    recipe = expunge.Recipe(Network, task, expunge.Training(epochs=60, batch_size=32))
    model = expunge.train(recipe, train, seed=0)

    # The ids are positions in the training data. The model that is passed in stays as it is.
    split = expunge.Split.from_ids(train, forget=mislabelled, test=test)
    results = [
        expunge.unlearn(model, split, method=method, task=task, seed=0)
        for method in ("finetune", "salun", {"kind": "npo", "epochs": 3})
    ]

    report = expunge.evaluate(results, against=recipe, retrained=3)
    print(report)
    report.to_html("report.html")
    save_weights(results[1].model, "forgotten.safetensors")


if __name__ == "__main__":
    main()
