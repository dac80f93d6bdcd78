"""The same audit as plan.yaml, as a Python call on a model that is already trained."""

from pathlib import Path

import my_model
import numpy as np
import torch

import crushproof

HERE = Path(__file__).parent


def main() -> None:
    data = np.load(HERE / "data.npz")  # written by make_data.py
    x, y = torch.from_numpy(data["x_train"]), torch.from_numpy(data["y_train"])
    model = my_model.train(my_model.build(), x, y, seed=0)
    result = crushproof.audit_model(
        model,
        (data["x_train"], data["y_train"]),
        (data["x_test"], data["y_test"]),
        recipes={"int8": "int8", "prune50": crushproof.Prune(sparsity=0.5)},
        attacks=[
            crushproof.Evasion(epsilons=(0.02, 0.05), gate_epsilon=0.05),
            "membership",
            crushproof.Extraction(budgets=(20, 60)),
        ],
        training=my_model.train,
        shadows={"training_free": 16, "trained": 16},
        name="breast cancer MLP",
    )
    print(result.verdict, *result.audit.deciding, sep="\n")
    print("report:", result.to_html(HERE / "report.html"))


if __name__ == "__main__":
    main()
