#!/usr/bin/env bash
# Prints the rules of tests/rules.txt with the results of their tests.
#
#   scripts/rules.sh OUTPUT...
#
# OUTPUT: output of `cargo test` and of scripts/fuzz.sh; for another script a line `script PATH ok`. Exits with 1 if a named
# test does not exist or has failed. A test that was not run is listed as such, and is not a failure.
set -euo pipefail

(($#)) || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
for output in "$@"; do
  [[ -r $output ]] || { echo "rules: $output cannot be read" >&2; exit 2; }
done
outputs=()
for output in "$@"; do outputs+=("$(realpath "$output")"); done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

declare -A result
while read -r _ name _ verdict; do
  case $verdict in
    ok*) [[ ${result[$name]:-} == FAIL ]] || result[$name]=pass ;;
    FAILED*) result[$name]=FAIL ;;
  esac
done < <(grep -hE '^test [^ ]+ \.\.\. ' "${outputs[@]}" || true)
while read -r _ name verdict _; do
  [[ $verdict == ok ]] && result[script:$name]=pass || result[script:$name]=FAIL
done < <(grep -hE '^script [^ ]+ ' "${outputs[@]}" || true)
while IFS=' ,' read -r _ name _; do
  result[fuzz:$name]=FAIL
  if grep -qsx 'fuzz: all well' "${outputs[@]}"; then result[fuzz:$name]=pass; fi
done < <(grep -hE '^fuzz: [a-z_]+, ' "${outputs[@]}" || true)

# Whether the named test, fuzz target or script exists.
exists() {
  case $1 in
    script:*) [[ -x ${1#script:} ]] ;;
    fuzz:*) [[ -f tests/fuzz/targets/${1#fuzz:}.rs ]] ;;
    *) grep -rqE --include='*.rs' --exclude-dir=target "fn ${1##*::}\(\)" src tests ;;
  esac
}

bad=0 shown=0 open=0
row() { # NUMBER RULE WHAT RESULT
  printf '%3s  %-92s  %-82s  %s\n' "$@"
}
row no rule 'shown by' result
while IFS='|' read -r number rule names note; do
  number=${number// /} rule=${rule# } rule=${rule% } note=${note# }
  [[ $number =~ ^[0-9]+$ ]] || continue
  passed=0 first=1
  for name in $names; do
    verdict=${result[$name]:-not run}
    exists "$name" || verdict='DOES NOT EXIST'
    case $verdict in
      pass) passed=1 ;;
      FAIL | DOES*) bad=1 ;;
    esac
    if ((first)); then row "$number" "$rule" "$name" "$verdict"; else row '' '' "$name" "$verdict"; fi
    first=0
  done
  if ((first)); then row "$number" "$rule" '(nothing)' 'not shown'; fi
  [[ -z $note ]] || row '' "     not shown: $note" '' ''
  if ((passed)); then shown=$((shown + 1)); else open=$((open + 1)); fi
done <tests/rules.txt
echo "rules: $shown shown, $open not"
exit "$bad"
