#!/usr/bin/env bash
# Builds static binaries for edge boxes: no program interpreter, no needed library, TLS inside.
#
#   scripts/cross-build.sh [TARGET ...]    these targets, or all of them (x86_64 aarch64 armv7 arm riscv64)
#   scripts/cross-build.sh --list          the targets
#   scripts/cross-build.sh --prepare ...   installs what the targets need, and builds nothing
#
# Sizes: x86-64 3.9 MB, aarch64 3.4 MB, the others less.
#
# The binaries come to DIR/TARGET/mcpport, where DIR is MCPPORT_CROSS_DIR (default target/cross). All that can be used again
# (toolchains, standard libraries, dependencies) is kept in DIR too, 1 to 3 GB of it.
#
# zig is the C compiler, the linker and the C library of every target; it and cargo-zigbuild come from PyPI into DIR.
# Rust's standard library for a target comes by `rustup target add`. Where that does not work (no rustup, its server out
# of reach, a toolchain without that target) Debian's packages of a newer compiler and of its source are unpacked
# into DIR, and the standard library is built from them; nothing of that is installed. MCPPORT_CROSS_ROUTE=rustup or
# =debian takes one route only. Needs cargo, python3 with venv, and for the second route apt-get and dpkg.
set -euo pipefail

readonly ZIG=0.17.1 ZIGBUILD=0.24.0
readonly ALL=(x86_64 aarch64 armv7 arm riscv64)
# rustup asks its server for long when that does not answer.
readonly RUSTUP_SECONDS=180
# The plainest kind of static program for every target: a fixed address, nothing to relocate. By themselves some targets would be
# built so and others as "static-pie", which relocates itself at the start: on x86-64 its table is 92 KB of the file, and what it
# writes 72 KiB of memory in each process; on MIPS it crashes. What is given up is a random address of the program itself;
# stack, heap and mapped memory have one all the same, and the crate has no unsafe code that could lead there
# (one call, without memory: src/process/session.rs).
readonly PLAIN="-C relocation-model=static"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${MCPPORT_CROSS_DIR:-$root/target/cross}
route=${MCPPORT_CROSS_ROUTE:-any}

fail() {
  printf 'cross-build: %s\n' "$1" >&2
  exit 1
}

# The compiler's name of a target that is given by its short name or by that one.
triple() {
  case $1 in
    x86_64 | x86_64-unknown-linux-musl) echo x86_64-unknown-linux-musl ;;
    aarch64 | aarch64-unknown-linux-musl) echo aarch64-unknown-linux-musl ;;
    armv7 | armv7-unknown-linux-musleabihf) echo armv7-unknown-linux-musleabihf ;;
    arm | armv6 | arm-unknown-linux-musleabihf) echo arm-unknown-linux-musleabihf ;;
    riscv64 | riscv64gc-unknown-linux-musl) echo riscv64gc-unknown-linux-musl ;;
    *) return 1 ;;
  esac
}

# zig and cargo-zigbuild, in an environment of their own.
prepare_zig() {
  local recipe="ziglang==$ZIG cargo-zigbuild==$ZIGBUILD"
  [[ $(cat "$dir/zig/recipe" 2>/dev/null) == "$recipe" ]] && return
  echo "installing zig" >&2
  rm -rf "$dir/zig"
  python3 -m venv "$dir/zig" || fail "python3 with its venv module is needed (package python3-venv)"
  "$dir/zig/bin/pip" install --quiet --disable-pip-version-check "ziglang==$ZIG" "cargo-zigbuild==$ZIGBUILD" ||
    fail "zig could not be installed from PyPI"
  echo "$recipe" >"$dir/zig/recipe"
}

# Whether rustup's toolchain has the standard library of a target, if need be after having asked for it.
by_rustup() {
  [[ $route != debian ]] && command -v rustup >/dev/null || return 1
  has_target "$1" && return
  echo "rustup target add $1" >&2
  timeout "$RUSTUP_SECONDS" rustup target add "$1" >"$dir/rustup.log" 2>&1 && has_target "$1" && return
  [[ $route == any ]] || { cat "$dir/rustup.log" >&2; fail "rustup has no standard library for $1"; }
  return 1
}

has_target() {
  (cd "$root" && rustup target list --installed 2>/dev/null) | grep -qx "$1"
}

as_root() {
  if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

# The first version in the list of a package, which is the one that apt-get would take.
candidate() {
  apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \(.*\)/\1/p' | grep -vx '(none)'
}

# Debian's compiler in its own folder: the package conflicts with other toolchains when it is installed.
prepare_debian() {
  local version std package
  if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
    fail "rustup does not offer every target asked for, and the other route needs Debian's apt-get and dpkg"
  fi
  version=$(candidate rustc-web) || { as_root apt-get update -qq || true; version=$(candidate rustc-web); } ||
    fail "apt knows no package rustc-web: run apt-get update, or take Debian 12 or later with its security archive"
  [[ $(cat "$dir/debian/recipe" 2>/dev/null) == "$version" ]] && return
  echo "unpacking Debian's compiler $version" >&2
  rm -rf "$dir/debian"
  mkdir -p "$dir/debian/packages"
  std=$(apt-cache depends "libstd-rust-web-dev=$version" | sed -n 's/^ *Depends: \(libstd-rust-web-[0-9.]*\)$/\1/p')
  local wanted=("rustc-web=$version" "rust-web-src=$version" "libstd-rust-web-dev=$version" "$std=$version")
  # LLVM, and of what it needs all that this machine does not have.
  package=$(apt-cache depends "$std=$version" | sed -n 's/^ *Depends: \(libllvm[0-9.]*\)$/\1/p')
  while read -r package; do
    wanted+=("$package")
  done < <(apt-get install --simulate --reinstall --no-install-recommends "$package" | awk '$1 == "Inst" { print $2 }')
  # apt has a user of its own for downloads, who may not write here; the word about that is of no use.
  (cd "$dir/debian/packages" && apt-get download -qq -o APT::Sandbox::User=root "${wanted[@]}") ||
    fail "Debian's compiler could not be downloaded: run apt-get update and try again"
  for package in "$dir"/debian/packages/*.deb; do
    dpkg -x "$package" "$dir/debian/root"
  done
  rm -r "$dir/debian/packages"
  write_wrapper
  "$dir/debian/rustc" --version >/dev/null || fail "Debian's compiler does not start on this machine"
  [[ -e $("$dir/debian/rustc" --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock ]] ||
    fail "the source of the standard library is not where it is expected in Debian's packages"
  echo "$version" >"$dir/debian/recipe"
}

write_wrapper() {
  cat >"$dir/debian/rustc" <<'END'
#!/bin/sh
# Debian's compiler from the folder beside, with its own libraries.
usr=$(dirname "$(readlink -f "$0")")/root/usr
LD_LIBRARY_PATH=$usr/lib/$(uname -m)-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$usr/bin/rustc" "$@"
END
  chmod +x "$dir/debian/rustc"
}

# Installs what a target needs, and says by which route it is built.
prepare() {
  prepare_zig
  if by_rustup "$1"; then
    echo rustup
  else
    [[ $route != rustup ]] || fail "rustup is not installed"
    prepare_debian
    echo debian
  fi
}

build() {
  local target=$1 by=$2 options=()
  export RUSTFLAGS=$PLAIN
  if [[ $by == debian ]]; then
    # zig brings the start files and the C library, so rustc must not look for its own.
    export RUSTC=$dir/debian/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="$PLAIN -C link-self-contained=no"
    options=(-Z "build-std=std,panic_abort")
  fi
  # What zig has built (its C library among it) is kept beside the rest, so that keeping DIR is keeping all of it.
  export ZIG_GLOBAL_CACHE_DIR=$dir/zig-cache ZIG_LOCAL_CACHE_DIR=$dir/zig-cache CARGO_ZIGBUILD_CACHE_DIR=$dir/zig-cache
  # Apart from the host's builds: other compiler, other flags.
  PATH=$dir/zig/bin:$PATH cargo zigbuild --manifest-path "$root/Cargo.toml" --locked --release --bin mcpport \
    --target "$target" --target-dir "$dir/build-$by" "${options[@]}" || fail "building for $target failed"
  mkdir -p "$dir/$target"
  cp "$dir/build-$by/$target/release/mcpport" "$dir/$target/mcpport"
}

# What must not be delivered ends the run: a program that asks for an interpreter or for libraries of the machine, or one
# that is not of the one kind that all targets have.
check() {
  local binary=$dir/$1/mcpport kind
  kind=$(file --brief "$binary")
  [[ $kind == *", statically linked"* ]] || fail "$binary is not statically linked: $kind"
  [[ $kind != *interpreter* ]] || fail "$binary asks for an interpreter: $kind"
  printf '%s: %s bytes, %s (by %s)\n' "$1" "$(stat -c %s "$binary")" "$kind" "$2"
}

main() {
  local name target by line only_prepare="" targets=() lines=()
  case ${1:-} in
    --list) printf '%s\n' "${ALL[@]}"; exit ;;
    --help | -h) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
    --prepare) only_prepare=1; shift ;;
  esac
  (($#)) || set -- "${ALL[@]}"
  for name in "$@"; do
    target=$(triple "$name") || fail "unknown target '$name'; known are ${ALL[*]}"
    targets+=("$target")
  done
  case $route in
    any | rustup | debian) ;;
    *) fail "MCPPORT_CROSS_ROUTE=$route: rustup, debian or any" ;;
  esac
  command -v cargo >/dev/null || fail "cargo is needed"
  command -v file >/dev/null || fail "file is needed (package file)"
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  for target in "${targets[@]}"; do
    by=$(prepare "$target")
    [[ -z $only_prepare ]] || continue
    (build "$target" "$by")
    line=$(check "$target" "$by")
    lines+=("$line")
  done
  ((${#lines[@]} == 0)) || printf '%s\n' "${lines[@]}"
}

main "$@"; exit
