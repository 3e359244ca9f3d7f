"""Models that were made elsewhere: did the unlearned one forget, compared with honest retraining?

Run it: ``python examples/audit_your_model.py``. It takes a few seconds and writes ``audit.html``.

The same from the shell, with the functions below as the models::

    expunge evaluate --data audit_your_model.py:data --forget ids.txt
        --original audit_your_model.py:original --unlearned audit_your_model.py:unlearned
        --retrained audit_your_model.py:retrained
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import expunge

FORGET = range(0, 1400, 10)


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test data; ids are positions in the training data."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


class Normalised(nn.Module):
    """A model that wants normalised inputs brings its normalisation along."""

    def __init__(self, model: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)


def fit(rows: Tensor, seed: int) -> nn.Module:
    """Any training will do; this one knows nothing of the library."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model = Normalised(layers, 0.3, 0.37)
    (images, labels), _ = data()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(40):
        for batch in rows[torch.randperm(len(rows))].split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()
    return model


def original() -> nn.Module:
    return fit(torch.arange(1400), seed=0)


def retrained(seed: int = 1) -> nn.Module:
    """Never saw the forget set."""
    rows = torch.arange(1400)
    return fit(rows[~torch.isin(rows, torch.tensor(FORGET))], seed)


def unlearned() -> nn.Module:
    """A deliberately superficial attempt: noise on the last layer."""
    model = original()
    torch.manual_seed(0)
    with torch.no_grad():
        last = model.model[3].weight
        last += 0.05 * torch.randn_like(last)
    return model


def main() -> None:
    train, test = data()
    split = expunge.Split.from_ids(train, FORGET, test=test)
    report = expunge.audit(
        original(),
        {"noise on the last layer": unlearned()},
        retrained=[retrained(seed) for seed in (1, 2, 3)],
        split=split,
    )
    print(report)
    report.to_html("audit.html")


if __name__ == "__main__":
    main()
