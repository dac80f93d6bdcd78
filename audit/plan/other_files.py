"""What a file is that stands where another sort was expected, and how it is audited instead."""

from __future__ import annotations

from pathlib import Path

from ...targets.errors import InputError, quoted

ARTIFACTS = (".onnx", ".tflite")
PLANS = (".yaml", ".yml")
_WEIGHTS = (
    "holds weights without the network they belong to. Name both in a plan, model: {{architecture: my_model:build, "
    "weights: {name}}} (crushproof init writes one to start from); or export the model to ONNX and give that file "
    "with --artifact"
)
_FOREIGN = (
    "is a model of another framework. Convert it to ONNX (tf2onnx, for example) or TFLite and give that file with "
    "--artifact"
)
_TORCH = (
    "is a file of torch. Weights are named in a plan beside their network, model: {{architecture: my_model:build, "
    "weights: {name}}} (crushproof init writes one to start from); a whole model is exported to ONNX and given with "
    "--artifact"
)
_DATA = (
    "holds data. Name it in a plan (crushproof init writes one), or give it with --data beside --artifact MODEL.onnx"
)
# What a file is by its suffix, and what to do with it.
_SORTS = {
    **dict.fromkeys(ARTIFACTS, "is a finished model. Audit it with crushproof audit --artifact {name} --data data.npz"),
    **dict.fromkeys(PLANS, "is a plan. Audit it with crushproof audit {name}"),
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".pkl"), _TORCH),
    ".safetensors": _WEIGHTS,
    **dict.fromkeys((".npz", ".npy", ".csv", ".parquet"), _DATA),
    **dict.fromkeys((".h5", ".keras", ".pb"), _FOREIGN),
    ".py": "is Python code. Name the function in it that builds the model in a plan, model: {{architecture: "
    "{stem}:build}} (crushproof init writes one to start from)",
    ".json": "is JSON. A finished audit is judged with crushproof gate FOLDER --policy release, and its report drawn "
    "with crushproof report FOLDER",
}


def refuse_other(path: Path, wanted: str, suffixes: tuple[str, ...]) -> None:
    """Refuses a file whose suffix says that it is of another sort; what is in it is looked at by whoever reads it.

    Args:
        wanted: what was expected: `a plan`.
        suffixes: of what was expected.

    Raises:
        InputError: it is of another sort; the message says which and what to do.
    """
    suffix = path.suffix.lower()
    if suffix in suffixes or suffix not in _SORTS or not path.is_file():
        return
    what = _SORTS[suffix].format(name=path.name, stem=path.stem)
    raise InputError(f"{quoted(path.name)} is not {wanted}: it {what}.")
