#!/usr/bin/env bash
# Checks what is delivered beside the binary: install.sh into a temporary root, the units, the OpenWrt script, the
# empty container. Nothing of this machine is changed, and no root is needed.
#
# MCPPORT_BIN is the binary (default target/release/mcpport). Needs systemd-analyze, and dash for the OpenWrt script.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/scripts
binary=${MCPPORT_BIN:-$root/target/release/mcpport}
static=${MCPPORT_CROSS_DIR:-$root/target/cross}/x86_64-unknown-linux-musl/mcpport
work=$(mktemp -d)
started=()
# shellcheck disable=SC2317
finish() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT

fail() {
  printf 'FAIL %s\n' "$1" >&2
  exit 1
}

install() {
  DESTDIR=$work/root "$here/install.sh" --binary "$binary" "$@" >"$work/said" || fail "install.sh $*"
}

# Files of the temporary root with their modes, one on each line.
tree() {
  (cd "$work/root" && find . -type f -printf '%m %P\n' | sort -k 2)
}

equal() { # WHAT WANTED FOUND
  [[ $2 == "$3" ]] || { diff <(printf '%s\n' "$2") <(printf '%s\n' "$3") >&2 || true; fail "$1"; }
}

# Waits for a line of a program's log.
logged() { # FILE PID PATTERN
  # The program opens it when it starts, which may be later than now.
  : >>"$1"
  grep -m1 -q -- "$3" < <(timeout 30 tail -n +1 --pid="$2" -f "$1" 2>/dev/null) || { cat "$1" >&2; fail "no '$3' in the log"; }
}

files_and_modes() {
  local wanted
  wanted='600 etc/mcpport/gateway.env
600 etc/mcpport/register-box.env
644 etc/systemd/system/mcpport-gateway.service
644 etc/systemd/system/mcpport-register@.service
755 usr/local/bin/mcpport'
  install --register box
  equal "files of an installation" "$wanted" "$(tree)"
  cmp -s "$binary" "$work/root/usr/local/bin/mcpport" || fail "the binary is not the one that was given"
  grep -Eq '^MCPPORT_AUTH_TOKEN=[0-9a-f]{48}$' "$work/root/etc/mcpport/gateway.env" || fail "no fresh token"
  # Again: settings stay, a mode that was loosened is mended.
  cp "$work/root/etc/mcpport/gateway.env" "$work/before"
  chmod 644 "$work/root/etc/mcpport/gateway.env"
  install --register=box
  equal "files of an update" "$wanted" "$(tree)"
  cmp -s "$work/before" "$work/root/etc/mcpport/gateway.env" || fail "an update has changed the settings"
  echo "ok install: files and modes, twice"
}

removal() {
  local wanted
  wanted='600 etc/mcpport/gateway.env
600 etc/mcpport/register-box.env'
  install --uninstall
  equal "files after --uninstall" "$wanted" "$(tree)"
  install --uninstall --purge
  equal "files after --purge" "" "$(tree)"
  install --uninstall
  for words in "--purge" "--register a/b" "--prefix rel" "--prefix /a|b" "--nonsense" "--binary"; do
    # shellcheck disable=SC2086
    if DESTDIR=$work/root "$here/install.sh" $words >/dev/null 2>"$work/said"; then fail "install.sh took $words"; fi
    [[ $(wc -l <"$work/said") == 1 ]] || fail "install.sh $words: more than a line"
  done
  equal "files after refusals" "" "$(tree)"
  echo "ok install: removal and refusals"
}

other_prefix() {
  install --prefix /usr
  grep -q '^ExecStart=/usr/bin/mcpport gateway$' "$work/root/usr/lib/systemd/system/mcpport-gateway.service" ||
    fail "the unit does not follow --prefix"
  install --prefix /usr --uninstall --purge
  equal "files after another prefix" "" "$(tree)"
  echo "ok install: another prefix"
}

# The programs with the settings as they are installed: the token is asked for, and lets the built-in server in.
settings_work() {
  local port token
  install --register box
  token=$(sed -n 's/^MCPPORT_AUTH_TOKEN=//p' "$work/root/etc/mcpport/gateway.env")
  (
    set -a
    # shellcheck disable=SC1091
    . "$work/root/etc/mcpport/gateway.env"
    MCPPORT_PORT=0 exec "$work/root/usr/local/bin/mcpport" gateway
  ) >"$work/gateway.log" 2>&1 &
  started+=($!)
  logged "$work/gateway.log" $! 'registrations on ws://127.0.0.1:'
  port=$(sed -n 's/.*registrations on ws:\/\/127.0.0.1:\([0-9]*\).*/\1/p' "$work/gateway.log" | head -n 1)
  (
    set -a
    # shellcheck disable=SC1091
    . "$work/root/etc/mcpport/register-box.env"
    MCPPORT_STDIO="'$work/root/usr/local/bin/mcpport' device" MCPPORT_SERVER_NAME=box MCPPORT_HEADER="Authorization: Bearer $token" \
      MCPPORT_GATEWAY_URL=${MCPPORT_GATEWAY_URL/8765/$port} exec "$work/root/usr/local/bin/mcpport" register
  ) >"$work/register.log" 2>&1 &
  started+=($!)
  logged "$work/gateway.log" "${started[0]}" "server 'box' offers"
  kill "${started[@]}"
  wait "${started[@]}" || fail "the programs did not end well"
  started=()
  echo "ok install: gateway and register work with the settings as installed"
}

# Units are checked with the program where it is now; the rest is as delivered.
units() {
  local name most
  command -v systemd-analyze >/dev/null || fail "systemd-analyze is needed (package systemd)"
  mkdir "$work/units"
  for name in mcpport-gateway.service mcpport-register@.service; do
    sed "s|^ExecStart=/|ExecStart=$work/root/|" "$work/root/etc/systemd/system/$name" >"$work/units/$name"
  done
  cp "$work/units/mcpport-register@.service" "$work/units/mcpport-register@box.service"
  for name in mcpport-gateway.service mcpport-register@box.service; do
    systemd-analyze verify --man=no "$work/units/$name" >"$work/said" 2>&1 || { cat "$work/said" >&2; fail "$name"; }
    [[ ! -s $work/said ]] || { cat "$work/said" >&2; fail "$name: warnings"; }
  done
  # systemd's own measure: 0 is closed, 10 is open. In tenths.
  for name in mcpport-gateway.service:15 mcpport-register@box.service:30; do
    most=${name#*:} name=${name%:*}
    systemd-analyze security --offline=yes --no-pager --threshold="$most" "$work/units/$name" >"$work/said" 2>&1 ||
      { cat "$work/said" >&2; fail "$name is more open than $most tenths"; }
    tail -n 1 "$work/said" | sed 's/^[^A-Za-z]*/ok units: /'
  done
}

# The OpenWrt script, with the functions that procd and UCI give it there.
openwrt() {
  local found
  found=$(MCPPORT_PROGRAM=$binary dash "$here/check-openwrt.sh" "$here/openwrt/mcpport/files/mcpport.init")
  equal "the OpenWrt script's instances" "open register-box
command $binary register
env HOME=/tmp
env+ MCPPORT_STDIO=/usr/bin/mcpport device
env+ MCPPORT_SERVER_NAME=box
env+ MCPPORT_HEADER=A: 1
B: 2
env+ MCPPORT_NO_SSL_VERIFY=1
user mcpport
close" "$found"
  echo "ok openwrt: the instance of an enabled section, its options and lists"
}

# As in a container from scratch: the program, and nothing else.
empty_root() {
  if [[ ! -x $static ]]; then
    echo "-- container: not checked, there is no $static"
    return
  fi
  mkdir "$work/empty"
  cp "$static" "$work/empty/mcpport"
  unshare --user --map-root-user --root="$work/empty" -- /mcpport gateway --host :: --port 0 --auth-token t >"$work/empty.log" 2>&1 &
  started+=($!)
  logged "$work/empty.log" $! 'listening on '
  kill "${started[@]}"
  wait "${started[@]}" || fail "the gateway in an empty root did not end well"
  started=()
  echo "ok container: the gateway runs in an empty root"
}

[[ -x $binary ]] || fail "no binary at $binary: run cargo build --release, or set MCPPORT_BIN"
mkdir "$work/root"
files_and_modes
removal
other_prefix
settings_work
units
openwrt
empty_root
