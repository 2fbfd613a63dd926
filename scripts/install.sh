#!/bin/sh
# Installs mcpport as a service of systemd, or brings an installation up to date; see --help.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
binary=
prefix=/usr/local
register=
uninstall=
purge=
destdir=${DESTDIR:-}
made=
secret=

usage() {
    cat <<'END'
Usage: install.sh [OPTIONS]

Installs the binary, a system user mcpport, units for systemd, and /etc/mcpport/gateway.env (mode 600) with a fresh token.
What is configured already is kept, so the same command brings a new version. Nothing is started.

  --binary FILE      the program (default: mcpport beside this script, else ../target/release/mcpport)
  --prefix DIR       where it goes (default: /usr/local)
  --register NAME    also make /etc/mcpport/register-NAME.env, for the unit mcpport-register@NAME
  --uninstall        stop the services; remove the program and the units, and keep settings and user
  --purge            with --uninstall: remove settings, state and user too
  --help             show this

With DESTDIR=DIR in the environment everything goes below DIR, and neither users nor services are touched: for packages.
END
}

wrong() {
    printf 'install.sh: %s (see --help)\n' "$1" >&2
    exit 2
}

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 1
}

read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --binary=* | --prefix=* | --register=*)
                option=$1
                shift
                set -- "${option%%=*}" "${option#*=}" "$@"
                continue
                ;;
            --binary | --prefix | --register)
                [ $# -gt 1 ] || wrong "$1 needs a value"
                case $1 in
                    --binary) binary=$2 ;;
                    --prefix) prefix=$2 ;;
                    --register) register=$2 ;;
                esac
                shift
                ;;
            --uninstall) uninstall=1 ;;
            --purge) purge=1 ;;
            --help | -h) usage; exit 0 ;;
            *) wrong "unknown option '$1'" ;;
        esac
        shift
    done
    case $prefix in
        /*) ;;
        *) wrong "--prefix: an absolute path is needed" ;;
    esac
    # It becomes part of a unit, and of a command there.
    case $prefix in
        *[!A-Za-z0-9/._+-]*) wrong "--prefix: letters, digits and / . _ + - only" ;;
    esac
    prefix=${prefix%/}
    case $register in
        *[!A-Za-z0-9_.-]*) wrong "--register: letters, digits and _ . - only" ;;
    esac
    [ ${#register} -le 64 ] || wrong "--register: at most 64 characters"
    [ -z "$purge" ] || [ -n "$uninstall" ] || wrong "--purge goes with --uninstall"
    [ -z "$uninstall" ] || [ -z "$register" ] || wrong "--register does not go with --uninstall"
}

# Whether this is the running system, and not a tree to be packed.
live() {
    [ -z "$destdir" ]
}

with_systemd() {
    live && [ -d /run/systemd/system ]
}

units() {
    # Where systemd looks, whatever the prefix.
    if [ "$prefix" = /usr ]; then echo "$destdir/usr/lib/systemd/system"; else echo "$destdir/etc/systemd/system"; fi
}

find_binary() {
    [ -z "$binary" ] || return 0
    for binary in "$here/mcpport" "$here/../target/release/mcpport"; do
        [ ! -f "$binary" ] || return 0
    done
    fail "no program found: run cargo build --release, or give one with --binary"
}

# Puts a file in place in one step: a running program or a reading systemd never sees half of it.
place() {
    mode=$1 to=$2
    cat >"$to.new"
    chmod "$mode" "$to.new"
    mv -f "$to.new" "$to"
}

add_user() {
    live || return 0
    id mcpport >/dev/null 2>&1 && return 0
    shell=/usr/sbin/nologin
    [ -x "$shell" ] || shell=/sbin/nologin
    if command -v useradd >/dev/null 2>&1; then
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell "$shell" mcpport
    elif command -v adduser >/dev/null 2>&1; then
        adduser -S -D -H -h /nonexistent -s "$shell" mcpport
    else
        fail "no useradd and no adduser: make a system user and a group mcpport, then try again"
    fi
}

# The unit with the path of this installation.
unit() {
    sed "s|^ExecStart=/usr/local/bin/|ExecStart=$prefix/bin/|" "$here/$1" | place 644 "$(units)/$1"
}

# A secret of 48 digits, into $secret. Nothing, or less than asked for, would be a door that is open.
token() {
    secret=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
    [ ${#secret} -eq 48 ] || fail "no randomness from /dev/urandom for a token"
}

gateway_settings() {
    file=$destdir/etc/mcpport/gateway.env
    [ ! -e "$file" ] || { chmod 600 "$file"; return 0; }
    made="$made $file"
    token
    (umask 077 && place 600 "$file") <<END
# Settings of mcpport-gateway: MCPPORT_<FLAG>=VALUE for each flag of "mcpport gateway --help".
# This file holds a secret: keep its mode at 600.

# Who presents this token is let in, clients and registrations alike. To change tokens without a restart, keep them in a
# file of the user mcpport instead, MCPPORT_AUTH_TOKEN_FILE=/etc/mcpport/tokens, and run "systemctl reload mcpport-gateway".
MCPPORT_AUTH_TOKEN=$secret

# Without it: loopback alone, for a proxy on this machine. "::" is everything; then TLS is wanted too.
#MCPPORT_HOST=::
#MCPPORT_PORT=8765
# PEM files that the user mcpport can read.
#MCPPORT_SSL_ENABLED=1
#MCPPORT_SSL_KEYFILE=/etc/mcpport/server.key
#MCPPORT_SSL_CERTFILE=/etc/mcpport/server.crt
END
}

register_settings() {
    [ -n "$register" ] || return 0
    file=$destdir/etc/mcpport/register-$register.env
    [ ! -e "$file" ] || { chmod 600 "$file"; return 0; }
    made="$made $file"
    token
    (umask 077 && place 600 "$file") <<END
# Settings of mcpport-register@$register: MCPPORT_<FLAG>=VALUE for each flag of "mcpport register --help".
# This file holds a secret: keep its mode at 600.

# The server. This one is built in, and tells about the machine.
MCPPORT_STDIO="$prefix/bin/mcpport device"
MCPPORT_GATEWAY_URL=ws://localhost:8765/mcp/register
#MCPPORT_HEADER="Authorization: Bearer TOKEN"
# An authority of your own, if the gateway's certificate is from one.
#MCPPORT_SSL_CA_CERT=/etc/mcpport/ca.crt
# The identity of this registration; so a box that comes back takes its own place again at once.
MCPPORT_SERVER_ID=$(echo "$secret" | cut -c1-32)
END
}

install_all() {
    find_binary
    [ -f "$binary" ] || fail "no such file: $binary"
    if live && [ "$(id -u)" -ne 0 ]; then
        fail "root is needed (or DESTDIR=DIR, to pack)"
    fi
    mkdir -p "$destdir$prefix/bin" "$(units)" "$destdir/etc/mcpport"
    place 755 "$destdir$prefix/bin/mcpport" <"$binary"
    add_user
    unit mcpport-gateway.service
    unit mcpport-register@.service
    gateway_settings
    register_settings
    if with_systemd; then systemctl daemon-reload; fi
    next_steps
}

next_steps() {
    echo "installed $destdir$prefix/bin/mcpport"
    for file in $made; do
        echo "look through $file"
    done
    live || return 0
    echo "then: systemctl enable --now mcpport-gateway"
    echo "  or: systemctl enable --now mcpport-register@${register:-NAME}"
    [ -n "$register" ] || echo "      (whose settings come by: install.sh --register NAME)"
    echo "after an update: systemctl restart 'mcpport-*'"
}

uninstall_all() {
    if live && [ "$(id -u)" -ne 0 ]; then
        fail "root is needed"
    fi
    if with_systemd; then
        # Nothing to stop or to disable is no fault.
        systemctl disable --now mcpport-gateway.service >/dev/null 2>&1 || true
        systemctl list-units --all --plain --no-legend 'mcpport-register@*' | while read -r name rest; do
            systemctl disable --now "$name" >/dev/null 2>&1 || echo "could not stop $name ($rest)" >&2
        done
    fi
    rm -f "$destdir$prefix/bin/mcpport" "$(units)/mcpport-gateway.service" "$(units)/mcpport-register@.service"
    if with_systemd; then systemctl daemon-reload; fi
    if [ -n "$purge" ]; then
        rm -rf "$destdir/etc/mcpport" "$destdir/var/lib/mcpport"
        if live && id mcpport >/dev/null 2>&1; then
            if command -v userdel >/dev/null 2>&1; then userdel mcpport; else deluser mcpport; fi
        fi
        echo "removed mcpport, its settings, its state and its user"
    else
        echo "removed mcpport; $destdir/etc/mcpport and the user mcpport are kept (--purge removes them)"
    fi
}

read_options "$@"
if [ -n "$uninstall" ]; then uninstall_all; else install_all; fi
