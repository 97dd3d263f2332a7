#!/bin/bash
# check.sh BUILD - `make oracle-check`: a finished adapter, loaded by the real PEFT.
# Needs the packages of requirements.txt in the Python named by ORACLE_PYTHON
# (default: python3).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${ORACLE_PYTHON:-python3}
"$python" -c 'import torch, transformers, peft, bitsandbytes' 2>/dev/null || {
  echo "oracle-check needs: $python -m pip install -r tests/oracle/requirements.txt"
  echo "(ORACLE_PYTHON names another Python)"
  exit 1
}
exec "$python" tests/oracle/check.py "$1"
