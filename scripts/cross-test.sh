#!/usr/bin/env bash
# Tests the binaries of scripts/cross-build.sh: `demo --once` over TLS; a call through its register and the native gateway; and
# through the native register and its gateway. Binaries for other architectures run under user-mode emulation.
#
#   scripts/cross-test.sh [TARGET ...]     tests these targets, or all that have been built
#
# MCPPORT_CROSS_DIR is their directory (default target/cross), MCPPORT_BIN the native binary (default
# target/release/mcpport). Needs Linux, python3, openssl, and qemu-user-static for other architectures.
#
# A program under emulation starts another one (`demo` its server), so the emulator must be registered with the kernel. If it
# is not, this script registers it in a namespace of its own, which needs no root (Linux 6.7 or later) and ends with it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${MCPPORT_CROSS_DIR:-$root/target/cross}
export MCPPORT_BIN=${MCPPORT_BIN:-$root/target/release/mcpport}
# Timeout for one target: three runs of one or two minutes at most.
readonly SECONDS_EACH=400

fail() {
  printf 'cross-test: %s\n' "$1" >&2
  exit 1
}

# Prints for a target: its directory, the emulator's name for it, the oldest supported processor, and its `uname -m`.
facts() {
  case $1 in
    x86_64*) echo x86_64-unknown-linux-musl x86_64 max x86_64 ;;
    aarch64*) echo aarch64-unknown-linux-musl aarch64 cortex-a53 aarch64 ;;
    armv7*) echo armv7-unknown-linux-musleabihf arm cortex-a7 armv7l ;;
    arm*) echo arm-unknown-linux-musleabihf arm arm1176 armv6l ;;
    riscv64*) echo riscv64gc-unknown-linux-musl riscv64 rv64 riscv64 ;;
    *) return 1 ;;
  esac
}

# Prints the line that registers the emulator for an architecture, as Debian ships it.
registration() {
  local file=/usr/lib/binfmt.d/qemu-$1.conf
  [[ -r $file ]] || fail "no emulator for $1: install the package qemu-user-static"
  cat "$file"
}

starts() {
  "$1" --version >/dev/null 2>&1
}

# Runs as root of the namespace: registers the emulator there, then starts the test.
inside() {
  local kind=$1
  shift
  mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  registration "$kind" >/proc/sys/fs/binfmt_misc/register
  exec "$@"
}

run() {
  local folder kind cpu machine how=emulated emulation binary test said=$2
  read -r folder kind cpu machine <<<"$said"
  binary=$dir/$folder/mcpport
  [[ -x $binary ]] || fail "no binary at $binary: run scripts/cross-build.sh $1"
  emulation="emulated as $machine ($cpu)"
  [[ $machine != "$(uname -m)" ]] || how=native emulation=native
  test=(timeout -k 10 "$SECONDS_EACH" python3 -B "$root/scripts/peers/cross.py" "$binary" "$folder" "$machine" "$work" "$how")
  echo "-- $folder, $emulation: $(stat -c %s "$binary") bytes, $(file --brief "$binary")"
  export QEMU_CPU=$cpu
  if starts "$binary"; then
    "${test[@]}"
    return
  fi
  registration "$kind" >/dev/null
  unshare --user --map-root-user --mount -- "${BASH_SOURCE[0]}" --inside "$kind" "$binary" --version >/dev/null ||
    fail "$binary does not start, and the kernel lets nobody here tell it about emulators: install binfmt-support as root"
  unshare --user --map-root-user --mount -- "${BASH_SOURCE[0]}" --inside "$kind" "${test[@]}"
}

main() {
  local name said targets=()
  case ${1:-} in
    --inside) shift; inside "$@" ;;
    --help | -h) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
  esac
  [[ -x $MCPPORT_BIN ]] || fail "no binary at $MCPPORT_BIN: run cargo build --release, or set MCPPORT_BIN"
  if (($#)); then
    targets=("$@")
  else
    for name in "$dir"/*/mcpport; do
      [[ -x $name ]] || fail "no binaries in $dir: run scripts/cross-build.sh"
      name=${name%/mcpport}
      targets+=("${name##*/}")
    done
  fi
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  "$root/scripts/generate-certs.sh" --output "$work" >/dev/null
  for name in "${targets[@]}"; do
    said=$(facts "$name") || fail "unknown target '$name'"
    run "$name" "$said"
  done
}

main "$@"; exit
