#!/usr/bin/env bash
# importing onnxruntime writes a device id and a data base of events into the user's cache folder
#
# Guess: `import onnxruntime` from PyPI on Linux writes no file; telemetry, if any, is for Windows and can be switched
#   off by disable_telemetry_events() once it is imported.
# What happens: the import alone makes ~/.cache/Microsoft/DeveloperTools/.onnxruntime with `deviceid` and
#   `onnxruntime.db`, to be uploaded. Where the folder cannot be made, a line of its log lands on stderr. Only the
#   environment variable ORT_DISABLE_TELEMETRY, set before the import, prevents it; '', '0' and 'false' do not.
# Why it matters: a library or command built on onnxruntime leaves files in its users' homes and identifies their
#   machines, without asking, and prints where homes are read-only (containers, CI, services).
# Source: onnxruntime/core/platform (telemetry_1ds.cc) and docs/Privacy.md of microsoft/onnxruntime
set -euo pipefail
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 onnxruntime==1.32.0

files_after() {
  rm -rf home
  mkdir home
  env -u XDG_CACHE_HOME "$@" "HOME=$folder/home" venv/bin/python -c 'import onnxruntime'
  find home -type f | sort
}

echo "not set:"
files_after -u ORT_DISABLE_TELEMETRY | tee left
grep -q '\.onnxruntime/deviceid$' left
grep -q '\.onnxruntime/onnxruntime.db$' left
for value in '' 0 false; do
  echo "ORT_DISABLE_TELEMETRY='$value': $(files_after "ORT_DISABLE_TELEMETRY=$value" | wc -l) files"
  test "$(files_after "ORT_DISABLE_TELEMETRY=$value" | wc -l)" -eq 2
done
echo "ORT_DISABLE_TELEMETRY=1: $(files_after ORT_DISABLE_TELEMETRY=1 | wc -l) files"
test "$(files_after ORT_DISABLE_TELEMETRY=1 | wc -l)" -eq 0
env -u ORT_DISABLE_TELEMETRY -u XDG_CACHE_HOME HOME=/dev/null venv/bin/python -c 'import onnxruntime' 2> log
echo "without a home: $(cat log)"
grep -q telemetry log
