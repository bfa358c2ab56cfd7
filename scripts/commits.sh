#!/bin/bash
# Checks the subjects of new commits: at most 72 characters, in the imperative, without a full stop. Names each commit
# that fails. Called by `make test`.
#
# usage: scripts/commits.sh [REVISION...]   by default everything after SINCE that HEAD has
#
# Works in a shallow clone: what is older than its boundary is not there and not checked.
set -euo pipefail
cd "$(dirname "$0")/.."

# Commits up to here are older than the check.
since=3cba145582faf09f4606a7414377d48200d96ade
longest=72

# From a tarball there is nothing to check.
git rev-parse --git-dir >/dev/null 2>&1 || exit 0

if [ $# = 0 ]; then
    set -- HEAD
    if git cat-file -e "$since^{commit}" 2>/dev/null; then
        set -- HEAD "^$since"
    elif [ "$(git rev-parse --is-shallow-repository)" = false ]; then
        echo "scripts/commits.sh: commit $since is not in this repository" >&2
        exit 1
    fi
fi

# First words that are no verb, and endings of verbs that are not in the imperative.
fault_of() {
    local subject=$1 first
    first=${subject%% *}
    first=${first%[,:]}
    if [ ${#subject} -gt $longest ]; then
        echo "has ${#subject} characters, more than $longest"
    elif [[ $subject == *. ]]; then
        echo "ends with a full stop"
    elif [[ ! $first =~ ^[A-Z][a-z]+$ ]]; then
        echo "does not begin with a capitalised verb"
    else
        case $first in
        A | An | The | This | That | These | Those | It | There | No | Not | Only | All | Each | Every | Some | \
            One | Two | What | When | Where | Who | Why | How | If | And | Or | But | Also | Now | For | From | In | On | \
            To | With | Without | Wip | Feat | Docs | Chore | Tests | Probes | Newcomers | Measuring)
            echo "begins with \"$first\", which is no verb"
            ;;
        # Imperatives that end like other forms.
        Embed | Exceed | Feed | Need | Proceed | Seed | Shed | Speed | Bring | Ping | Ring | String | Swing | Focus) ;;
        *ss) ;;
        *ed | *ing | *s) echo "begins with \"$first\", which is not in the imperative" ;;
        esac
    fi
}

faults=0
while IFS=$'\t' read -r commit subject; do
    fault=$(fault_of "$subject")
    if [ -n "$fault" ]; then
        echo "commit $commit $fault: $subject" >&2
        faults=$((faults + 1))
    fi
done < <(git log --no-merges --format='%h%x09%s' "$@" --)
[ $faults = 0 ]
