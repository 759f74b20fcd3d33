# shellcheck shell=bash disable=SC2034
# For the scripts beside it, which source it: what was got and what was expected, and how often they differed.
failures=0
expect() {  # expect NAME GOT WANTED
  if [ "$2" = "$3" ]; then
    echo "ok    $1: $2"
  else
    echo "FAIL  $1: got $2, expected $3"
    failures=$((failures + 1))
  fi
}
say() { printf '\n== %s\n' "$1"; }
