#!/bin/sh
# Installs mcpport as a systemd service, or updates an installation; see --help.
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

Installs the binary, a system user mcpport, systemd units, and /etc/mcpport/gateway.env (mode 600) with a new token.
Existing settings are kept, so the same command also updates. Starts no service.

  --binary FILE      the binary to install (default: mcpport beside this script, else ../target/release/mcpport)
  --prefix DIR       installation prefix (default: /usr/local)
  --register NAME    also create /etc/mcpport/register-NAME.env, for the unit mcpport-register@NAME
  --uninstall        stop the services, and remove the binary and the units; keep settings and user
  --purge            with --uninstall: also remove settings, state and user
  --help             show this help

For packagers: with DESTDIR=DIR in the environment, all files go below DIR, and no users or services are changed.
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
        *) wrong "--prefix: must be an absolute path" ;;
    esac
    # The prefix becomes part of a command in the unit.
    case $prefix in
        *[!A-Za-z0-9/._+-]*) wrong "--prefix: only letters, digits and / . _ + - are allowed" ;;
    esac
    prefix=${prefix%/}
    case $register in
        *[!A-Za-z0-9_.-]*) wrong "--register: only letters, digits and _ . - are allowed" ;;
    esac
    [ ${#register} -le 64 ] || wrong "--register: at most 64 characters"
    [ -z "$purge" ] || [ -n "$uninstall" ] || wrong "--purge requires --uninstall"
    [ -z "$uninstall" ] || [ -z "$register" ] || wrong "--register cannot be combined with --uninstall"
}

# Whether the target is the running system, and not a directory to be packaged.
live() {
    [ -z "$destdir" ]
}

with_systemd() {
    live && [ -d /run/systemd/system ]
}

units() {
    # The directories that systemd searches, whatever the prefix.
    if [ "$prefix" = /usr ]; then echo "$destdir/usr/lib/systemd/system"; else echo "$destdir/etc/systemd/system"; fi
}

find_binary() {
    [ -z "$binary" ] || return 0
    for binary in "$here/mcpport" "$here/../target/release/mcpport"; do
        [ ! -f "$binary" ] || return 0
    done
    fail "no binary found: run cargo build --release, or pass one with --binary"
}

# Replaces a file atomically, so that systemd never reads half of it, and a running program can be replaced.
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
        fail "neither useradd nor adduser found: create a system user and group mcpport, then run this again"
    fi
}

# Installs a unit with the path of the binary.
unit() {
    sed "s|^ExecStart=/usr/local/bin/|ExecStart=$prefix/bin/|" "$here/$1" | place 644 "$(units)/$1"
}

# Sets $secret to 48 random hexadecimal digits. Fails if there are fewer: an empty token would let everybody in.
token() {
    secret=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
    [ ${#secret} -eq 48 ] || fail "cannot read randomness from /dev/urandom for a token"
}

gateway_settings() {
    file=$destdir/etc/mcpport/gateway.env
    [ ! -e "$file" ] || { chmod 600 "$file"; return 0; }
    made="$made $file"
    token
    (umask 077 && place 600 "$file") <<END
# Settings of mcpport-gateway: MCPPORT_<FLAG>=VALUE for each flag of "mcpport gateway --help".
# Keep its mode at 600, because it contains a token.

# Token that clients and registrations must send. To change tokens without a restart, keep them in a file owned by the user
# mcpport instead (MCPPORT_AUTH_TOKEN_FILE=/etc/mcpport/tokens), and run "systemctl reload mcpport-gateway".
MCPPORT_AUTH_TOKEN=$secret

# Address to listen on (default: loopback only, for a reverse proxy on this machine). "::" is all addresses; then enable TLS too.
#MCPPORT_HOST=::
#MCPPORT_PORT=8765
# PEM files; the user mcpport must be able to read them.
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
# Keep its mode at 600, because it contains a token.

# Command of the server. The built-in one reports on this host.
MCPPORT_STDIO="$prefix/bin/mcpport device"
MCPPORT_GATEWAY_URL=ws://localhost:8765/mcp/register
#MCPPORT_HEADER="Authorization: Bearer TOKEN"
# CA certificate, if the gateway's certificate was issued by your own CA.
#MCPPORT_SSL_CA_CERT=/etc/mcpport/ca.crt
# Identity of this registration: with the same id, a restarted register takes its name back at once.
MCPPORT_SERVER_ID=$(echo "$secret" | cut -c1-32)
END
}

install_all() {
    find_binary
    [ -f "$binary" ] || fail "no such file: $binary"
    if live && [ "$(id -u)" -ne 0 ]; then
        fail "must run as root (or with DESTDIR=DIR, to package)"
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
        echo "edit $file"
    done
    live || return 0
    echo "then: systemctl enable --now mcpport-gateway"
    echo "  or: systemctl enable --now mcpport-register@${register:-NAME}"
    [ -n "$register" ] || echo "      (create its settings with: install.sh --register NAME)"
    echo "after an update: systemctl restart 'mcpport-*'"
}

uninstall_all() {
    if live && [ "$(id -u)" -ne 0 ]; then
        fail "must run as root"
    fi
    if with_systemd; then
        # It is not an error if there is nothing to stop or disable.
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
