# Cases: functions that fail when a command in them fails. Sourced.
#
#   case_run NAME COMMAND...  runs one, prints its line; its output goes to OUT/NAME.log
#   case_start / case_wait   the same beside others, JOBS at once
#   skip WHY                 ends the case that calls it
#   until_true SECONDS WHAT COMMAND...  polls

JOBS=${JOBS:-4}
results=$SCRATCH/results
: >"$results"

case_run() {
    local name=$1 start=$EPOCHREALTIME code=0 verdict took
    shift
    # In a process of its own: within `if` or `||`, set -e would do nothing.
    (
        trap - EXIT
        set -euo pipefail
        shopt -s inherit_errexit
        PS4='+ ${EPOCHREALTIME} ${FUNCNAME[0]:-}:${LINENO}: '
        set -x
        "$@"
    ) >"$OUT/$name.log" 2>&1 &
    wait $! || code=$?
    took=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    case $code in
    0) verdict=PASS ;;
    77) verdict=SKIP ;;
    *) verdict=FAIL ;;
    esac
    echo "$verdict $name $took" | tee -a "$results" >&8
    case $verdict in
    SKIP) sed -n 's/^SKIP: /    /p' "$OUT/$name.log" >&8 ;;
    FAIL) tail -12 "$OUT/$name.log" | cut -c1-300 | sed 's/^/    /' >&8 ;;
    esac
}

# A token for each case that may run.
mkfifo "$SCRATCH/tokens"
exec 7<>"$SCRATCH/tokens"
for ((i = 0; i < JOBS; i++)); do echo >&7; done

case_start() {
    read -r -u 7
    { case_run "$@"; echo >&7; } &
    cases+=($!)
}

cases=()
case_wait() {
    [ ${#cases[@]} = 0 ] || wait "${cases[@]}" || true
    cases=()
}

skip() {
    echo "SKIP: $*"
    exit 77
}

until_true() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        if [ $SECONDS -ge $limit ]; then
            echo "in vain: $what" >&2
            return 1
        fi
        sleep 0.1
    done
}

sums() {
    local passed failed skipped
    passed=$(grep -c ^PASS "$results" || true)
    failed=$(grep -c ^FAIL "$results" || true)
    skipped=$(grep -c ^SKIP "$results" || true)
    echo "kubelet: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
}

# `!` would not do: set -e lets it pass either way.
fails() {
    if "$@"; then
        echo "should have failed: $*" >&2
        return 1
    fi
}
