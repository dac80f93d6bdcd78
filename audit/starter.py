"""The commented plan that `crushproof init` writes: it runs as it is, on digits, and says what to change."""

from __future__ import annotations

from pathlib import Path

from ..targets.errors import InputError

PLAN = """\
# A plan of crushproof. Run it:  crushproof audit plan.yaml
# As it stands it audits a small model on scikit-learn's digits; change `data` and `model` to yours, one by one.
# Paths and modules are looked up in this file's folder. `8/255` is a number here. A plan may import code, so trust
# it as you trust code.

name: my audit
seed: 0                               # decides every random number: same plan, same findings

data: {kind: digits}
# data:
#   kind: npz                         # arrays x_train, y_train (what the model was trained on), x_test, y_test
#   path: data.npz
#   bounds: [0, 1]                    # smallest and largest value of an input; epsilon 1 is the whole range
# data:
#   kind: csv                         # a header line, one column of labels, the others numbers
#   train_path: train.csv             # leave it out and membership is not audited
#   test_path: test.csv
#   label: species
#   bounds: [0, 10]

model:
  architecture: my_model:build        # module:function that returns the untrained torch module
  parameters: {hidden: 64}            # its keyword arguments
  # weights: model.safetensors        # the trained dense model; without it the audit trains one
  training: {epochs: 12}              # how it was (or is to be) trained; shadow models are trained alike
  # training_function: my_model:train # instead of `training`: (module, x, y, seed) -> module

candidates:                           # name: recipe; `crushproof catalogue` lists all with their parameters
  int8: int8
  int4: {kind: quantize, weight_bits: 4}
  prune80: {kind: prune, sparsity: 0.8, fine_tune: {epochs: 4}}
  robust-int8: {recipe: int8, defense: adversarial-training}
  int2: {recipe: {kind: quantize, weight_bits: 2}, control: true}   # to be compared with, never up for release
  # shipped: {file: model_int8.onnx, recipe: int8}   # a finished ONNX or TFLite file, audited as it is

attacks:                              # or one word: quick, standard, thorough
  - kind: evasion
    epsilon: auto                     # where the dense model keeps about half of its accuracy: a loss can be seen
    # epsilon: 8/255                  # a domain's habit (colour images; 0.3 for MNIST), for adversarially trained
                                      # models: an undefended one is on the floor there, and nothing can be told
    records: 300                      # more take longer and narrow the intervals
    parts: [{kind: pgd, steps: 20}, transfer, {kind: square, queries: 100}]
  - membership
  - {kind: extraction, budgets: [50, 150]}
shadows: {training_free: 32, trained: 16}  # 64 and 16 by default: more see smaller leaks and take longer

policy: release                       # may lose 2 points of accuracy and 5 of robust accuracy, expose 5 more of members
# policy:                             # or your own limits, as fractions; also the path of a file that holds them
#   changes: {accuracy: -0.02, robust_accuracy: -0.05}   # against the candidate's own dense model
#   absolutes: {robust_accuracy: 0.4, auc: 0.6}
# release: [int8, prune80]            # which candidates the verdict covers; default: all but controls

# engine: {kind: local, workers: 2}    # processes; default: one per core; {kind: ray}: a cluster, see docs/cluster.md
# device: cpu                         # default: CUDA where there is one
# declared: {tee: "served in an enclave"}   # what the audit cannot verify; the report says so
"""

MODEL = '''\
"""The model under audit: replace it by yours."""

import torch
from torch import nn


def build(hidden: int = 64, classes: int = 10) -> nn.Module:
    """The untrained model: x float32 [n, 1, 8, 8] -> logits [n, classes] (not probabilities)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def train(module: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    """Trains `module` on x float32 [n, 1, 8, 8] and y int64 [n]; only used when the plan names it."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(30):
        for index in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()
    return module
'''


def write_starter(folder: Path) -> list[Path]:
    """Writes plan.yaml and my_model.py into `folder`, which is made when it is not there; gives their paths.

    Raises:
        InputError: one of them is there already (nothing is written then), or the folder cannot be written.
    """
    files = {folder / "plan.yaml": PLAN, folder / "my_model.py": MODEL}
    there = [str(path) for path in files if path.exists() or path.is_symlink()]
    if there:
        raise InputError(f"{' and '.join(there)} would be overwritten. Move it away, or name another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be written: {error.strerror}. Name another folder."
        ) from None
    return list(files)
