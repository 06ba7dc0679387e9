#!/usr/bin/env bash
# Creates, or brings up to date, the virtual environment in which SGLang serves without an accelerator.
#   usage: [PYTHON=python3] environments/cpu/create.sh [directory, default .venv]
# A stamp in the directory remembers the recipe it was made from; while that is unchanged, nothing is done.
#
# PyPI's torch is a CUDA build (about 3 GB with its libraries); it serves here as well. For the small CPU build:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make env
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=${1:-.venv}
python=${PYTHON:-python3}
stamp=$venv/tokencake-environment.sha256

# The checkout's path counts: the project is installed from where it lies.
recipe=$({ echo "$PWD"; cat environments/cpu/*.* pyproject.toml; } | sha256sum)
if [[ -f $stamp && $(<"$stamp") == "$recipe" ]]; then
    exit 0
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "create.sh: $python is older than Python 3.11; name a newer one with PYTHON=..." >&2
    exit 1
}
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"

install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet "$@"
}

echo "Creating the environment in $venv (a few minutes the first time)"
install torch==2.13.0
install --no-deps --requirement environments/cpu/requirements.txt
# --no-deps: SGLang pins a newer torch and its CUDA kernels, which nothing here runs.
install --no-deps sglang==0.5.23 torchvision==0.28.0

site_packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    cp environments/cpu/torchvision_without_ops.py "$site_packages/"
    echo 'import torchvision_without_ops' >"$site_packages/torchvision_without_ops.pth"
fi

install --no-deps --no-build-isolation --editable .
echo "$recipe" >"$stamp"
