#!/usr/bin/env bash
# Everything that needs a GPU, with its results in a folder:
#
#   bash bench/on_device.sh [-t] [-f] FOLDER [CASE]...
#
# -t: only the tests marked gpu, then those of them that launch each kernel a few times under compute-sanitizer, where
#     that is installed (gpu-tests.txt, sanitizer.txt; five minutes at most).
# -f: only the figures of the cases whose names begin with CASE, all of them without one (figures.json, which is
#     written again after every case, and figures.txt; ten minutes at most).
# PYTHON says which interpreter (python3). The status is 0 if everything passed.
set -uo pipefail

tests=1 figures=1
while getopts tf option; do
    case $option in
        t) figures= ;;
        f) tests= ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3} failed=0
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
export PYTHONUNBUFFERED=1
# An installed package is taken as it is, else the one of this checkout.
(cd "$out" && "$python" -c 'import catapult_fast' 2> /dev/null) || export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

pytest() {
    "$@" -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root" "${selected[@]}"
}

if [ -n "$tests" ] && [ "${NUMBA_ENABLE_CUDASIM:-0}" = 1 ]; then
    echo "the tests marked gpu want a device, not a simulated one" | tee "$out/gpu-tests.txt"
elif [ -n "$tests" ]; then
    # Interrupted, pytest still says what it has found.
    mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' "$root/tests")
    selected=(-m gpu "${files[@]}")
    pytest timeout -s INT -k 10 150 "$python" 2>&1 | tee "$out/gpu-tests.txt" || failed=1
    if command -v compute-sanitizer > /dev/null; then
        selected=(-m gpu -k "one_step or same_bits or every_spectrum" "${files[@]}")
        pytest timeout -s INT -k 10 150 compute-sanitizer --tool memcheck --error-exitcode 9 "$python" 2>&1 |
            tee "$out/sanitizer.txt" || failed=1
    else
        echo "compute-sanitizer is not installed" | tee "$out/sanitizer.txt"
    fi
fi

if [ -n "$figures" ]; then
    # In its folder, where the files of the sweep are made and removed.
    (cd "$out" && "$python" -m catapult_fast bench --backend cuda -o figures.json "$@") 2>&1 |
        tee "$out/figures.txt" || failed=1
fi
exit "$failed"
