#!/bin/sh
# Stand-ins for the functions of procd and UCI that an init script uses; they print their arguments. For check-delivery.sh.
set -eu

# One enabled server with its options, and a disabled gateway.
config_load() { :; }
config_foreach() {
    function=$1 kind=$2
    shift 2
    case $kind in
        register) "$function" box "$@" ;;
        gateway) "$function" gateway "$@" ;;
    esac
}
config_get_bool() {
    if [ "$2.$3" = box.enabled ]; then eval "$1=1"; else eval "$1=$4"; fi
}
config_get() {
    case $2.$3 in
        box.stdio) eval "$1='/usr/bin/mcpport device'" ;;
        # All values of a list in one string.
        box.header) eval "$1='A: 1 B: 2'" ;;
        box.no_ssl_verify) eval "$1=1" ;;
        *) eval "$1=" ;;
    esac
}
config_list_foreach() {
    [ "$1.$2" = box.header ] || return 0
    "$3" 'A: 1'
    "$3" 'B: 2'
}
procd_open_instance() { echo "open $1"; }
procd_set_param() {
    case $1 in
        command | env | user) echo "$*" ;;
    esac
}
procd_append_param() {
    kind=$1
    shift
    echo "$kind+ $*"
}
procd_close_instance() { echo close; }

# shellcheck disable=SC1090
. "$1"
start_service
