#!/usr/bin/env bash
# Checks the files delivered with the binary: install.sh (into a temporary root), the units, the OpenWrt files and the
# container. Needs no root and changes nothing on this machine.
#
# MCPPORT_BIN is the binary (default target/release/mcpport). Needs systemd-analyze, python3, GNU make, and dash for the
# OpenWrt script. The container is only checked if scripts/cross-build.sh has built its binary.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/scripts
binary=${MCPPORT_BIN:-$root/target/release/mcpport}
cross=${MCPPORT_CROSS_DIR:-$root/target/cross}
# mcpport rejects unknown MCPPORT_ variables.
unset MCPPORT_BIN MCPPORT_CROSS_DIR
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

# Lists the files of the temporary root with their modes, one per line.
tree() {
  (cd "$work/root" && find . -type f -printf '%m %P\n' | sort -k 2)
}

equal() { # WHAT WANTED FOUND
  [[ $2 == "$3" ]] || { diff <(printf '%s\n' "$2") <(printf '%s\n' "$3") >&2 || true; fail "$1"; }
}

# Waits for a line in a program's log.
logged() { # FILE PID PATTERN
  # The program may not have created the file yet.
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
  # A second run keeps the settings and restores their mode.
  cp "$work/root/etc/mcpport/gateway.env" "$work/before"
  chmod 644 "$work/root/etc/mcpport/gateway.env"
  # A newer binary replaces one that is running.
  cp "$binary" "$work/newer"
  echo >>"$work/newer"
  "$work/root/usr/local/bin/mcpport" gateway --port 0 >"$work/old.log" 2>&1 &
  started+=($!)
  logged "$work/old.log" $! 'listening on '
  binary=$work/newer install --register=box
  equal "files of an update" "$wanted" "$(tree)"
  cmp -s "$work/before" "$work/root/etc/mcpport/gateway.env" || fail "an update has changed the settings"
  cmp -s "$work/newer" "$work/root/usr/local/bin/mcpport" || fail "an update has not installed the new program"
  kill "${started[@]}"
  wait "${started[@]}" || fail "the program that was replaced did not end well"
  started=()
  install --register box
  echo "ok install: files and modes; an update replaces the program and keeps the settings"
}

# Without randomness there is no token, and then no settings: a gateway without a token would be open.
no_token() {
  mkdir "$work/poor"
  printf '#!/bin/sh\n' >"$work/poor/od"
  chmod +x "$work/poor/od"
  if PATH=$work/poor:$PATH DESTDIR=$work/none "$here/install.sh" --binary "$binary" >/dev/null 2>"$work/said"; then
    fail "install.sh has created settings without a token"
  fi
  grep -q randomness "$work/said" || fail "install.sh does not say what is missing for a token"
  [[ ! -e $work/none/etc/mcpport/gateway.env ]] || fail "install.sh has left settings without a token"
  echo "ok install: no settings without a token"
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

# A real installation, including the user, in a namespace with a copy of this machine's root: an overlay in memory, which
# disappears with the process. It has no systemd.
live() {
  if ((EUID)) || id mcpport >/dev/null 2>&1; then
    echo "-- install: a real one is not tried; that needs root, and a machine without mcpport"
    return
  fi
  mkdir "$work/layer"
  cp "$binary" "$work/program"
  # shellcheck disable=SC2016
  unshare --mount --propagation private -- sh -eu -c '
    mount -t tmpfs tmpfs "$1/layer"
    mkdir "$1/layer/new" "$1/layer/work" "$1/layer/all"
    mount -t overlay -o "lowerdir=/,upperdir=$1/layer/new,workdir=$1/layer/work" overlay "$1/layer/all"
    mount -t tmpfs tmpfs "$1/layer/all/run"
    mount --bind /dev "$1/layer/all/dev"
    mkdir "$1/layer/all/run/from"
    cp "$2/install.sh" "$2"/*.service "$1/program" "$1/layer/all/run/from"
    echo mounted
    exec chroot "$1/layer/all" sh -eu -c "
      cd /run/from
      ./install.sh --binary program --register box
      id mcpport
      ls -ln /etc/mcpport/gateway.env | grep \"^-rw------- 1 0 0\"
      ./install.sh --binary program
      ./install.sh --uninstall
      id mcpport
      test ! -e /usr/local/bin/mcpport
      test -e /etc/mcpport/gateway.env
      ./install.sh --uninstall --purge
      test ! -e /etc/mcpport
      if id mcpport; then exit 1; fi
      echo all done
    "
  ' live "$work" "$here" >"$work/said" 2>&1 || true
  if ! grep -qx mounted "$work/said"; then
    echo "-- install: a real one is not tried; the kernel allows no layer above this root"
    return
  fi
  grep -qx 'all done' "$work/said" || { cat "$work/said" >&2; fail "a real installation"; }
  echo "ok install: a real one as root, with its user; an update; removal"
}

other_prefix() {
  install --prefix /usr
  grep -q '^ExecStart=/usr/bin/mcpport gateway$' "$work/root/usr/lib/systemd/system/mcpport-gateway.service" ||
    fail "the unit does not follow --prefix"
  install --prefix /usr --uninstall --purge
  equal "files after another prefix" "" "$(tree)"
  echo "ok install: another prefix"
}

# Runs the programs with the installed settings: the token is required, and the built-in server registers with it.
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

# The units are checked with the path of the binary under test; the rest is as delivered.
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
  # systemd's exposure level in tenths: 0 is closed, 100 is open.
  for name in mcpport-gateway.service:15 mcpport-register@box.service:30; do
    most=${name#*:} name=${name%:*}
    systemd-analyze security --offline=yes --no-pager --threshold="$most" "$work/units/$name" >"$work/said" 2>&1 ||
      { cat "$work/said" >&2; fail "$name is more open than $most tenths"; }
    tail -n 1 "$work/said" | sed 's/^[^A-Za-z]*/ok units: /'
  done
}

# Runs the OpenWrt script with stand-ins for the functions of procd and UCI.
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

# A stand-in for OpenWrt's build system: the names that the recipe uses, and a package of the files that `install` creates.
openwrt_sdk() {
  mkdir -p "$work/sdk/include"
  cat >"$work/sdk/rules.mk" <<'END'
INCLUDE_DIR := $(TOPDIR)/include
PKG_BUILD_DIR = $(TOPDIR)/build/$(PKG_NAME)-$(PKG_VERSION)
CP := cp -fpR
INSTALL_DIR := install -d -m0755
INSTALL_BIN := install -m0755
INSTALL_CONF := install -m0600
END
  cat >"$work/sdk/include/package.mk" <<'END'
define BuildPackage
$(eval $(Package/$(1)))
$(foreach field,TITLE CATEGORY SECTION DEPENDS URL,$(if $($(field)),,$(error Package/$(1) has no $(field))))
compile:
	$(Build/Prepare)
	$(Build/Configure)
	$(Build/Compile)
	$(call Package/$(1)/install,$(TOPDIR)/packed)
	@echo "$(PKG_NAME) $(PKG_VERSION)-$(PKG_RELEASE)" >$(TOPDIR)/name
	@echo "$(strip $(Package/$(1)/conffiles))" >$(TOPDIR)/conffiles
endef
END
}

# Checks the package recipe for each architecture: which binary it takes, and which files it installs.
openwrt_recipe() {
  local target version made="" arch packages wanted
  command -v make >/dev/null || fail "GNU make is needed (package make)"
  openwrt_sdk
  for target in x86_64-unknown-linux-musl aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf \
    arm-unknown-linux-musleabihf riscv64gc-unknown-linux-musl; do
    mkdir -p "$work/cross/$target"
    echo "$target" >"$work/cross/$target/mcpport"
  done
  version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1)
  while read -r arch packages wanted; do
    rm -rf "$work/sdk/build" "$work/sdk/packed"
    make --silent -C "$here/openwrt/mcpport" TOPDIR="$work/sdk" ARCH="$arch" ARCH_PACKAGES="$packages" \
      MCPPORT_CROSS_DIR="$work/cross" compile >"$work/said" 2>&1 || { cat "$work/said" >&2; fail "the recipe, for $packages"; }
    equal "the binary for $packages" "$wanted" "$(cat "$work/sdk/packed/usr/bin/mcpport")"
    equal "files of the package" '600 etc/config/mcpport
755 etc/init.d/mcpport
755 usr/bin/mcpport' "$(cd "$work/sdk/packed" && find . -type f -printf '%m %P\n' | sort -k 2)"
    made+=" ${wanted%%-*}"
  done <<'END'
aarch64 aarch64_cortex-a53 aarch64-unknown-linux-musl
x86_64 x86_64 x86_64-unknown-linux-musl
riscv64 riscv64_riscv64 riscv64gc-unknown-linux-musl
arm arm_cortex-a7_neon-vfpv4 armv7-unknown-linux-musleabihf
arm arm_arm1176jzf-s_vfp arm-unknown-linux-musleabihf
END
  equal "the recipe's version" "mcpport $version-1" "$(cat "$work/sdk/name")"
  equal "the recipe's settings file" "/etc/config/mcpport" "$(cat "$work/sdk/conffiles")"
  echo "ok openwrt: the recipe packs the binary of each target:$made"
}

# Prints the Containerfile as lines "KEY VALUE": files as "copy FROM TO", commands with one word per line.
container_recipe() {
  python3 - "$here/Containerfile" <<'END'
import json, re, sys
values, alone = {}, ("FROM", "USER", "STOPSIGNAL")
for line in open(sys.argv[1]):
    line = line.strip()
    if not line or line.startswith("#"):
        continue
    word, rest = line.split(None, 1)
    rest = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], rest)
    if word == "ARG":
        values.update([rest.split("=", 1)])
    elif word == "COPY":
        source, to = rest.split()
        print("copy", source, to)
    elif word in ("ENTRYPOINT", "CMD"):
        for part in json.loads(rest):
            print(word.lower(), part)
    elif word in alone:
        print(word.lower(), rest)
    elif word != "EXPOSE":
        sys.exit(f"not known here: {line}")
END
}

# Runs as in the container: only its files, its user, its command and its stop signal.
container() {
  local key value more from="" user="" signal="" entry=() command=() inside port
  container_recipe >"$work/recipe" || fail "the Containerfile cannot be read"
  mkdir "$work/empty"
  while read -r key value more; do
    case $key in
      from) from=$value ;;
      user) user=$value ;;
      stopsignal) signal=$value ;;
      entrypoint) entry+=("$value") ;;
      cmd) command+=("$value") ;;
      copy)
        value=$cross/${value#target/cross/}
        if [[ ! -x $value ]]; then
          echo "-- container: not run, there is no $value"
          return
        fi
        [[ $(file --brief "$value") == *"statically linked"* ]] || fail "$value is not static"
        mkdir -p "$(dirname "$work/empty$more")"
        cp "$value" "$work/empty$more"
        ;;
    esac
  done <"$work/recipe"
  equal "base of the container" scratch "$from"
  inside=(unshare --user --map-user="${user%:*}" --map-group="${user#*:}" --root="$work/empty" --wd=/ "${entry[@]}")
  [[ $("${inside[@]}" --version) == "mcpport "* ]] || fail "the container's program does not start"
  # Settings in the environment, as in a container, with a free port.
  MCPPORT_PORT=0 MCPPORT_AUTH_TOKEN=t "${inside[@]}" "${command[@]}" >"$work/empty.log" 2>&1 &
  started+=($!)
  logged "$work/empty.log" $! 'registrations on ws://'
  port=$(sed -n 's/.*registrations on ws:\/\/[^ ]*:\([0-9]*\)\/.*/\1/p' "$work/empty.log" | head -n 1)
  "${inside[@]}" register --stdio '/mcpport device' --server-name box --header 'Authorization: Bearer t' \
    --gateway-url "ws://localhost:$port/mcp/register" >"$work/edge.log" 2>&1 &
  started+=($!)
  logged "$work/empty.log" "${started[0]}" "server 'box' offers"
  kill -s "${signal#SIG}" "${started[@]}"
  wait "${started[@]}" || fail "the programs of the container did not end well"
  started=()
  echo "ok container: gateway and register run as its user $user with its command, and nothing else in the root"
}

[[ -x $binary ]] || fail "no binary at $binary: run cargo build --release, or set MCPPORT_BIN"
mkdir "$work/root"
files_and_modes
no_token
removal
live
other_prefix
settings_work
units
openwrt
openwrt_recipe
container
