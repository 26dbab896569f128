#!/usr/bin/env bash
# The step of action.yml: one harness command from environment variables, its verdict as outputs, its exit code as the step's.
set -uo pipefail

arguments=("$COMMAND" --out "$OUT")
case "$COMMAND" in
check)
  arguments+=(--profile "$PROFILE" --fail-on "$FAIL_ON")
  [ -n "$CANDIDATE" ] && arguments+=(--candidate "$CANDIDATE")
  ;;
gsm8k)
  arguments+=(--base-url "$BASE_URL" --fail-on "$FAIL_ON")
  ;;
mutants)
  [ -n "$CANDIDATE" ] && arguments+=(--candidate "$CANDIDATE")
  ;;
*)
  echo "::error::command must be check, gsm8k or mutants, got $COMMAND"
  exit 64
  ;;
esac
[ -n "$AGAINST" ] && arguments+=(--against "$AGAINST")
# Split as a shell splits words, without expanding anything.
if [ -n "$ARGUMENTS" ]; then
  mapfile -t more < <("$PYTHON" -c 'import os, shlex; print(*shlex.split(os.environ["ARGUMENTS"]), sep="\n")')
  arguments+=("${more[@]}")
fi

"$PYTHON" -P -m harness.cli "${arguments[@]}"
code=$?
# With 64 nothing was run: a record that is there is an earlier one's.
if [ "$code" -ne 64 ] && [ -f "$OUT/record.json" ]; then
  verdict=$("$PYTHON" -P -c 'import sys; from harness import load_record; print(load_record(sys.argv[1]).verdict.value)' "$OUT")
  {
    echo "verdict=$verdict"
    echo "record=$OUT/record.json"
  } >>"$GITHUB_OUTPUT"
fi
exit "$code"
