"""`python -m pcns_onnx` is the command line."""

from pcns_onnx.cli.main import run

run()
