#!/usr/bin/env bash
# The first step of action.yml: the harness with what the command needs, and with the extra of the candidate.
set -euo pipefail

case "$COMMAND" in
check) extras=canary ;;
gsm8k) extras=gsm8k ;;
*) extras= ;;
esac
if [ -n "$EXTRA" ]; then extras="${extras:+$extras,}$EXTRA"; fi
"$PYTHON" -m pip install --quiet --disable-pip-version-check "$GITHUB_ACTION_PATH${extras:+[$extras]}"
