#!/usr/bin/env bash
# Checks the dependencies by cargo-deny and deny.toml: licences, sources, banned packages, and known
# advisories. Builds cargo-deny on first use.
#
# The advisories are a repository on GitHub. Where that cannot be reached, as on a machine with
# package registries alone, this says so and checks the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.20.2
tools=target/tools
deny=$tools/bin/cargo-deny
if [[ $("$deny" --version 2>/dev/null) != "cargo-deny $version" ]]; then
  # Without optimization: about a minute on two idle cores, and a check takes seconds either way.
  CARGO_PROFILE_DEV_DEBUG=0 timeout 600 \
    cargo install --quiet --locked --debug --root "$tools" --target-dir "$tools/build" "cargo-deny@$version"
  rm -rf "$tools/build"
fi

# Also fetches the packages of other systems, whose licences are not checked.
"$deny" --locked check licenses bans sources
if timeout 20 git ls-remote https://github.com/rustsec/advisory-db HEAD >/dev/null 2>&1; then
  "$deny" --locked check advisories
  echo "deny: licences, sources, bans and advisories ok"
else
  echo "deny: licences, sources and bans ok; ADVISORIES NOT CHECKED: github.com/rustsec/advisory-db cannot be reached"
fi
