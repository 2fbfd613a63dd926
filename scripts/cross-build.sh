#!/usr/bin/env bash
# Builds static binaries: no program interpreter, no shared libraries, TLS included.
#
#   scripts/cross-build.sh [TARGET ...]    these targets, or all of them (x86_64 aarch64 armv7 arm riscv64)
#   scripts/cross-build.sh --list          the targets
#   scripts/cross-build.sh --prepare ...   installs what the targets need, and builds nothing
#
# Sizes: x86-64 3.9 MB, aarch64 3.4 MB, the others less.
#
# Output: DIR/TARGET/mcpport, where DIR is MCPPORT_CROSS_DIR (default target/cross). DIR also caches toolchains, standard
# libraries and dependencies, 1 to 3 GB.
#
# zig is the C compiler, linker and C library for every target; it and cargo-zigbuild are installed from PyPI into DIR.
# Rust's standard library for a target is installed with `rustup target add`. If that fails (no rustup, no network, a
# toolchain without that target), Debian's packages of a newer compiler and its source are unpacked into DIR, without being
# installed, and the standard library is built from source. MCPPORT_CROSS_ROUTE=rustup or =debian allows only one way.
# Needs cargo, python3 with venv, and for the second way apt-get and dpkg.
set -euo pipefail

readonly ZIG=0.17.1 ZIGBUILD=0.24.0
readonly ALL=(x86_64 aarch64 armv7 arm riscv64)
# rustup retries for a long time if its server does not answer.
readonly RUSTUP_SECONDS=180
# Link at a fixed address, so that nothing is relocated at startup. By default some targets would be "static-pie", which
# relocates itself: on x86-64 its table takes 92 KB of the file, and relocation writes 72 KiB of memory in each process; on
# MIPS it crashes. The cost is that the address of the program is not random. Stack, heap and mapped memory still are, and
# the crate's only unsafe call (src/process/session.rs) does not touch memory.
readonly PLAIN="-C relocation-model=static"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${MCPPORT_CROSS_DIR:-$root/target/cross}
route=${MCPPORT_CROSS_ROUTE:-any}

fail() {
  printf 'cross-build: %s\n' "$1" >&2
  exit 1
}

# Prints the target triple for a short name or a triple.
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

# Installs zig and cargo-zigbuild into a virtual environment.
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

# Whether rustup's toolchain has the standard library of a target; installs it if possible.
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

# Prints the version of a package that apt-get would install.
candidate() {
  apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \(.*\)/\1/p' | grep -vx '(none)'
}

# Unpacks Debian's compiler into DIR, because the installed package would conflict with other toolchains.
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
  # LLVM, and its dependencies that are not installed here.
  package=$(apt-cache depends "$std=$version" | sed -n 's/^ *Depends: \(libllvm[0-9.]*\)$/\1/p')
  while read -r package; do
    wanted+=("$package")
  done < <(apt-get install --simulate --reinstall --no-install-recommends "$package" | awk '$1 == "Inst" { print $2 }')
  # apt's own download user may not write here; this avoids its warning.
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
# Runs Debian's compiler from the directory beside, with its own libraries.
usr=$(dirname "$(readlink -f "$0")")/root/usr
LD_LIBRARY_PATH=$usr/lib/$(uname -m)-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$usr/bin/rustc" "$@"
END
  chmod +x "$dir/debian/rustc"
}

# Installs the tools for a target, and prints which way it is built: rustup or debian.
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
    # zig provides the start files and the C library, so rustc must not use its own.
    export RUSTC=$dir/debian/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="$PLAIN -C link-self-contained=no"
    options=(-Z "build-std=std,panic_abort")
  fi
  # Keep zig's cache (with its C library) in DIR too, so that DIR is the whole cache.
  export ZIG_GLOBAL_CACHE_DIR=$dir/zig-cache ZIG_LOCAL_CACHE_DIR=$dir/zig-cache CARGO_ZIGBUILD_CACHE_DIR=$dir/zig-cache
  # A separate target directory, because compiler and flags differ from the host's builds.
  PATH=$dir/zig/bin:$PATH cargo zigbuild --manifest-path "$root/Cargo.toml" --locked --release --bin mcpport \
    --target "$target" --target-dir "$dir/build-$by" "${options[@]}" || fail "building for $target failed"
  mkdir -p "$dir/$target"
  cp "$dir/build-$by/$target/release/mcpport" "$dir/$target/mcpport"
}

# Fails if a binary is not statically linked or needs a program interpreter.
check() {
  local binary=$dir/$1/mcpport kind
  kind=$(file --brief "$binary")
  [[ $kind == *", statically linked"* ]] || fail "$binary is not statically linked: $kind"
  [[ $kind != *interpreter* ]] || fail "$binary needs a program interpreter: $kind"
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
    *) fail "MCPPORT_CROSS_ROUTE=$route: expected rustup, debian or any" ;;
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
