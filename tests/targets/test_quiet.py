"""No library reports to anybody or writes home."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from watched import Watched

import crushproof
from crushproof.targets.quiet import SWITCHES, away_from_home
from crushproof.targets.temporary import own_folder

SESSION = """
import sys
import numpy, onnxruntime
from onnx import TensorProto, helper
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "secret", ends[:1], ends[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
session.run(None, {"x": numpy.zeros(1, "float32")})
"""


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_a_runtime_is_silent_whatever_the_user_set(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    watched = Watched(tmp_path / "watched", tmp_path / "out")
    code = SESSION if package == "onnxruntime" else f"import {package}"
    command = [sys.executable, "-c", f"import crushproof\n{code}"]
    subprocess.run(watched.traced(command), env=watched.env, cwd=tmp_path, check=True)
    watched.assert_silent()


@pytest.mark.parametrize(
    "code", ["socket.getaddrinfo('127.0.0.1', 9)", "open('made', 'w')", "os.mkdir(os.path.expanduser('~/.cache'))"]
)
def test_what_is_not_silent_is_noticed(code: str, tmp_path: Path) -> None:
    watched = Watched(tmp_path / "watched", tmp_path / "out")
    subprocess.run([sys.executable, "-c", f"import os, socket; {code}"], env=watched.env, cwd=tmp_path, check=True)
    with pytest.raises(AssertionError):
        watched.assert_silent()


def test_the_switches_are_thrown_in_this_process() -> None:
    assert crushproof.__version__
    assert {name: os.environ.get(name) for name in SWITCHES} == SWITCHES
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")


def test_away_from_home_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nobody")
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    with suppress(KeyError), away_from_home():
        assert Path.home() == own_folder()
        assert os.environ["MPLCONFIGDIR"] == os.environ["XDG_CACHE_HOME"] == str(own_folder())
        assert not logging.getLogger("matplotlib.font_manager").isEnabledFor(logging.WARNING)
        raise KeyError
    assert (os.environ["HOME"], os.environ["XDG_CACHE_HOME"]) == ("/nobody", "/elsewhere")
    assert "MPLCONFIGDIR" not in os.environ
    assert logging.getLogger("matplotlib.font_manager").isEnabledFor(logging.WARNING)


def test_matplotlib_imported_away_from_home_takes_the_users_settings(tmp_path: Path) -> None:
    rc = tmp_path / "home" / ".config" / "matplotlib" / "matplotlibrc"
    code = (
        "from crushproof.targets.quiet import away_from_home\n"
        "with away_from_home():\n    import matplotlib\n    cache = matplotlib.get_cachedir()\n"
        "import os\nassert os.environ['HOME'] not in cache and 'MATPLOTLIBRC' not in os.environ\n"
        "print(matplotlib.rcParams['lines.linewidth'], matplotlib.get_configdir())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "MATPLOTLIB", "XDG"))}
    rc.parent.mkdir(parents=True)
    rc.write_text("lines.linewidth: 7")
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, "HOME": str(tmp_path / "home")}, capture_output=True, text=True
    )
    if sys.platform == "linux":
        assert (done.stdout, done.stderr) == (f"7.0 {rc.parent}\n", "")


def test_libraries_that_keep_a_folder_at_home_are_imported_away_from_it() -> None:
    root, found = Path(crushproof.__file__).parent, 0
    for part in ("audit", "attacks", "defenses", "compression", "training", "targets"):
        for file in (root / part).rglob("*.py"):
            lines = file.read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(lines):
                if line.strip().startswith(("from art", "import art")) or line.strip() == "import matplotlib":
                    found += 1
                    assert "with away_from_home():" in lines[number - 1], f"{file}:{number + 1}"
                whole = line.startswith(("from scipy", "import scipy."))  # half a second of every process
                assert not whole, f"{file}:{number + 1} loads it before it is used: write `import scipy`"
    assert found == 3
