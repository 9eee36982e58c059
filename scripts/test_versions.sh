#!/usr/bin/env bash
# scripts/test_versions.sh newest|lowest: the tests that lean on other packages most, with the newest versions that pip
# resolves today or the lowest that pyproject.toml allows, in a virtual environment of their own. torch is that of
# constraints.txt in both: another one is a download of gigabytes.
set -euo pipefail
cd "$(dirname "$0")/.."
which=$1
venv=.venv-$which
tests=(
    tests/unit/test_versions.py tests/unit/test_sampler.py tests/unit/test_scoring.py tests/unit/test_router.py
    tests/unit/test_render.py tests/unit/test_recipe.py tests/tiny/test_training.py tests/tiny/test_training_arguments.py
)

"${PYTHON:-python3}" -m venv "$venv"
constraints=$venv/constraints.txt
grep '^torch==' constraints.txt >"$constraints"
if [ "$which" = lowest ]; then
    "$venv/bin/python" scripts/lowest_versions.py >>"$constraints"
elif [ "$which" != newest ]; then
    echo "$0: newest or lowest, not $which" >&2
    exit 2
fi

install() {
    "$venv/bin/pip" install --quiet --upgrade --upgrade-strategy eager --retries 5 --constraint "$constraints" \
        --editable ".[math,peft,tensorboard]" pytest pytest-xdist
}
if ! install && ! { sleep 20 && install; }; then
    echo "test-$which: pip could not install the $which versions, so no test ran (see its message above): a package index" \
        "that does not answer, or floors in pyproject.toml that do not go together" >&2
    exit 1
fi
"$venv/bin/pip" list 2>/dev/null | grep -iE '^(torch|transformers|accelerate|datasets|peft|tokenizers|numpy|huggingface) ' ||
    true
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest --numprocesses auto --dist loadfile "${tests[@]}"
