"""The peers' own virtual environment: installed once, never a dependency of the project."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = (
    "onnxsim==0.8.*", "torch-pruning==1.6.*", "torch>=2.6", "onnx>=1.17", "onnxruntime>=1.20", "numpy", "scipy",
)  # fmt: skip
_ASK = "import json, importlib.metadata as m; print(json.dumps({p: m.version(p) for p in %r}))"


def python_of_peers(folder: Path) -> Path:
    """The interpreter of the environment in `folder`, which is made and filled if need be."""
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(REQUIREMENTS)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing the peers into {folder}", flush=True)
    venv.create(folder, with_pip=True)
    done = subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=False)
    if done.returncode:
        sys.exit(f"the peers could not be installed into '{folder}': see pip's message, or give another --peers folder")
    stamp.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Versions of what the peers run on."""
    names = ("onnxsim", "torch-pruning", "torch", "onnxruntime")
    answer = subprocess.run([python, "-c", _ASK % (names,)], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(answer.stdout)
    return found
