# Installs peers by package name, in exact versions, below $MCPPORT_PEERS_DIR. Sourced, with $here set to this folder.
# shellcheck shell=bash
: "${MCPPORT_PEERS_DIR:?}" "${here:?}"

# installed DIRECTORY RECIPE: whether the directory was created from this recipe.
installed() {
  cmp -s "$2" "$1/recipe"
}

# venv NAME: creates a Python environment from a list of exact versions.
venv() {
  local dir=$MCPPORT_PEERS_DIR/$1 recipe=$here/$1.txt
  installed "$dir" "$recipe" && return
  echo "installing $1" >&2
  rm -rf "$dir"
  python3 -m venv "$dir"
  "$dir/bin/pip" install --quiet --disable-pip-version-check --requirement "$recipe"
  cp "$recipe" "$dir/recipe"
}

# packages NAME RECIPE: installs Node packages from a package.json of exact versions.
packages() {
  local dir=$MCPPORT_PEERS_DIR/$1 recipe=$here/$2
  installed "$dir" "$recipe" && return
  echo "installing node packages ($1)" >&2
  rm -rf "$dir"
  mkdir -p "$dir"
  cp "$recipe" "$dir/package.json"
  npm install --prefix "$dir" --no-package-lock --no-audit --no-fund --silent
  cp "$recipe" "$dir/recipe"
}

# sources NAME VENV PACKAGE: unpacks the source distribution of a package, in the version of an environment.
sources() {
  local dir=$MCPPORT_PEERS_DIR/$1 recipe=$here/$2.txt package=$3 version
  installed "$dir" "$recipe" && return
  version=$(sed -n "s/^$package==//p" "$recipe")
  echo "unpacking $package $version" >&2
  rm -rf "$dir"
  mkdir -p "$dir"
  "$MCPPORT_PEERS_DIR/$2/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary "$package" \
    --dest "$dir" "$package==$version"
  tar -xzf "$dir/$package-$version.tar.gz" -C "$dir" --strip-components=1
  cp "$recipe" "$dir/recipe"
}

# crate NAME VERSION: builds a Rust program with its own Cargo.lock.
crate() {
  local dir=$MCPPORT_PEERS_DIR/rust
  [[ -f $dir/$1-$2 ]] && return
  echo "building $1 $2" >&2
  cargo install --quiet --locked --root "$dir" --target-dir "$dir/build" --version "$2" "$1"
  touch "$dir/$1-$2"
}

# program NAME: builds the Rust program in a folder of that name here.
program() {
  [[ -x $MCPPORT_PEERS_DIR/$1/debug/peers-$1 ]] || echo "building $1" >&2
  cargo build --quiet --locked --manifest-path "$here/$1/Cargo.toml" --target-dir "$MCPPORT_PEERS_DIR/$1"
}
