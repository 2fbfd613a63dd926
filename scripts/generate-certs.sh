#!/usr/bin/env bash
# Creates a small CA and a server certificate for `mcpport gateway`, and client certificates on request.
# An existing CA is kept, so that edges which trust its ca.crt need no change.
set -euo pipefail

readonly PROGRAM="${0##*/}"

usage() {
    cat <<END
Usage: $PROGRAM [OPTIONS]

Creates a certificate authority (unless the output directory has one) and a server certificate.

  --domain NAME     host name of the gateway, also *.example.com; repeatable (default: localhost)
  --ip ADDRESS      address of the gateway, IPv4 or IPv6; repeatable
  --output DIR      output directory (default: ./certs)
  --days N          validity of the certificates in days (default: 365; the CA: at least 3650)
  --key-size BITS   size of the RSA keys in bits: 2048, 3072 or 4096 (default: 2048)
  --client NAME     also create NAME.crt and NAME.key, for gateways that require client certificates; repeatable
  --ca-name NAME    name of the CA (default: mcpport CA)
  --country CC      two letters (default: none)
  --state NAME      state or province (default: none)
  --locality NAME   city (default: none)
  --org NAME        organisation (default: mcpport)
  --ou NAME         organisational unit (default: none)
  --help            show this help

Files: ca.crt ca.key ca.srl index.txt openssl.cnf serial server.crt server.csr server.key

Then:
  mcpport gateway --ssl-enabled --ssl-keyfile DIR/server.key --ssl-certfile DIR/server.crt
  mcpport register --gateway-url wss://NAME:8765/mcp/register --ssl-ca-cert DIR/ca.crt --stdio "..."
END
}

# Reports a usage error: exit 2.
wrong() {
    printf '%s: %s (see --help)\n' "$PROGRAM" "$1" >&2
    exit 2
}

# Reports a failure: exit 1.
fail() {
    printf '%s: %s\n' "$PROGRAM" "$1" >&2
    exit 1
}

domains=()
ips=()
clients=()
output=./certs
days=365
key_size=2048
ca_name="mcpport CA"
country=""
state=""
locality=""
org=mcpport
ou=""

# Parses `--flag value` and `--flag=value`.
read_options() {
    local flag value
    while (($# > 0)); do
        flag=$1
        shift
        case $flag in
            --help | -h)
                usage
                exit 0
                ;;
            --domain | --ip | --output | --days | --key-size | --client | --ca-name | --country | --state | --locality | --org | --ou)
                (($# > 0)) || wrong "$flag needs a value"
                value=$1
                shift
                ;;
            --domain=* | --ip=* | --output=* | --days=* | --key-size=* | --client=* | --ca-name=* | --country=* | --state=* | --locality=* | --org=* | --ou=*)
                value=${flag#*=}
                flag=${flag%%=*}
                ;;
            *) wrong "unknown option '$flag'" ;;
        esac
        [[ $value != *[[:cntrl:]]* ]] || wrong "$flag: control characters are not allowed"
        store "$flag" "$value"
    done
}

store() {
    local flag=$1 value=$2
    case $flag in
        --domain) domains+=("$value") ;;
        --ip) ips+=("$value") ;;
        --client) clients+=("$value") ;;
        --output) output=$value ;;
        --days) days=$value ;;
        --key-size) key_size=$value ;;
        --ca-name) ca_name=$value ;;
        --country) country=$value ;;
        --state) state=$value ;;
        --locality) locality=$value ;;
        --org) org=$value ;;
        --ou) ou=$value ;;
    esac
}

is_ipv4() {
    local part
    [[ $1 =~ ^[0-9]{1,3}(\.[0-9]{1,3}){3}$ ]] || return 1
    for part in ${1//./ }; do
        ((10#$part <= 255)) || return 1
    done
}

is_ip() {
    is_ipv4 "$1" || [[ $1 == *:* && $1 =~ ^[0-9A-Fa-f:.]+$ ]]
}

# Values are written to openssl's configuration, so only characters of names and addresses are accepted.
check_options() {
    local name
    [[ $days =~ ^[1-9][0-9]{0,4}$ ]] || wrong "--days '$days': expected a number from 1 to 99999"
    case $key_size in
        2048 | 3072 | 4096) ;;
        *) wrong "--key-size '$key_size': expected 2048, 3072 or 4096" ;;
    esac
    [[ -z $country || $country =~ ^[A-Za-z]{2}$ ]] || wrong "--country '$country': expected two letters"
    [[ -n $output ]] || wrong "--output: expected a directory"
    [[ $output != -* ]] || output=./$output
    [[ -n $ca_name ]] || wrong "--ca-name: expected a name"
    for name in "$ca_name" "$org" "$ou"; do
        ((${#name} <= 64)) || wrong "'$name': at most 64 characters"
    done
    for name in ${ips[@]+"${ips[@]}"}; do
        is_ip "$name" || wrong "--ip '$name': not an IPv4 or IPv6 address"
    done
    for name in ${domains[@]+"${domains[@]}"}; do
        is_ip "$name" || [[ $name =~ ^(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$ && ${#name} -le 253 ]] ||
            wrong "--domain '$name': not a host name"
    done
    for name in ${clients[@]+"${clients[@]}"}; do
        [[ $name =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$ ]] || wrong "--client '$name': only letters, digits and _ . - are allowed"
        case $name in
            ca | server) wrong "--client '$name': this name is used by the other files" ;;
        esac
    done
}

add() {
    case ",$alt_names," in
        *",$1,"*) ;;
        *) alt_names=${alt_names:+$alt_names,}$1 ;;
    esac
}

# Names and addresses of the server in openssl's form. Current verifiers check nothing else.
alternative_names() {
    local name
    alt_names=""
    for name in "${domains[@]}"; do
        if is_ip "$name"; then add "IP:$name"; else add "DNS:$name"; fi
        if [[ $name == localhost ]]; then
            add IP:127.0.0.1
            add IP:::1
        fi
    done
    for name in ${ips[@]+"${ips[@]}"}; do
        add "IP:$name"
    done
}

# Prints one part of a subject, or nothing if it is empty. Escapes / \ and +, which are special to openssl.
part() {
    local value=$2
    [[ -n $value ]] || return 0
    value=${value//\\/\\\\}
    value=${value//\//\\/}
    value=${value//+/\\+}
    printf '/%s=%s' "$1" "$value"
}

# Prints the subject of a certificate. A common name is limited to 64 characters; verifiers use the alternative names.
subject() {
    printf '%s%s%s%s%s%s' "$(part C "$country")" "$(part ST "$state")" "$(part L "$locality")" \
        "$(part O "$org")" "$(part OU "$ou")" "$(part CN "${1:0:64}")"
}

# Runs openssl, and prints its output only if it fails.
run() {
    local said
    if ! said=$("$@" 2>&1); then
        printf '%s\n' "$said" >&2
        fail "openssl failed: ${*:1:2}"
    fi
}

write_config() {
    cat >"$work/openssl.cnf" <<END
# Written by $PROGRAM. Also good for "openssl ca", which keeps its list in index.txt and its next number in serial.
[req]
distinguished_name = dn
string_mask = utf8only
prompt = no

[dn]
CN = mcpport

[ca]
default_ca = mcpport

[mcpport]
dir = .
certificate = \$dir/ca.crt
private_key = \$dir/ca.key
database = \$dir/index.txt
serial = \$dir/serial
new_certs_dir = \$dir
default_md = sha256
default_days = $days
policy = any
copy_extensions = none
x509_extensions = server
unique_subject = no

[any]
countryName = optional
stateOrProvinceName = optional
localityName = optional
organizationName = optional
organizationalUnitName = optional
commonName = supplied

[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid

[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $alt_names

[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
}

new_key() {
    (umask 077 && run openssl genpkey -algorithm RSA -pkeyopt "rsa_keygen_bits:$key_size" -out "$1")
    chmod 600 "$1"
}

# Copies the existing CA, or creates one.
authority() {
    if [[ -e $output/ca.key && -e $output/ca.crt ]]; then
        echo "keeping the CA in $output (ca.crt, ca.key)"
        (umask 077 && cp "$output/ca.key" "$work/ca.key")
        cp "$output/ca.crt" "$work/ca.crt"
        [[ ! -e $output/ca.srl ]] || cp "$output/ca.srl" "$work/ca.srl"
        belongs "$work/ca.crt" "$work/ca.key" || fail "$output/ca.key is not the key of $output/ca.crt; remove both to create a new CA"
        openssl x509 -in "$work/ca.crt" -noout -checkend 0 >/dev/null ||
            fail "the CA in $output has expired; remove ca.crt and ca.key to create a new one"
        openssl x509 -in "$work/ca.crt" -noout -checkend "$((days * 86400))" >/dev/null ||
            echo "note: the CA in $output expires before the new certificate"
        return
    fi
    [[ ! -e $output/ca.key && ! -e $output/ca.crt ]] ||
        fail "$output has only one of ca.key and ca.crt; restore the other, or remove it to create a new CA"
    new_key "$work/ca.key"
    run openssl req -x509 -new -sha256 -utf8 -key "$work/ca.key" -out "$work/ca.crt" -days "$((days > 3650 ? days : 3650))" \
        -config "$work/openssl.cnf" -extensions authority -subj "$(subject "$ca_name")"
}

# Whether a certificate and a key belong together.
belongs() {
    local certified own
    certified=$(openssl x509 -in "$1" -noout -pubkey 2>/dev/null) || return 1
    own=$(openssl pkey -in "$2" -pubout 2>/dev/null) || return 1
    [[ $certified == "$own" ]]
}

# Creates key, request and certificate named $1, with the extensions of section $2 above and the common name $3.
certificate() {
    new_key "$work/$1.key"
    run openssl req -new -sha256 -utf8 -key "$work/$1.key" -out "$work/$1.csr" -config "$work/openssl.cnf" -subj "$(subject "$3")"
    run openssl x509 -req -sha256 -in "$work/$1.csr" -out "$work/$1.crt" -days "$days" \
        -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAserial "$work/ca.srl" -CAcreateserial \
        -extfile "$work/openssl.cnf" -extensions "$2"
}

# Moves the finished files to the output directory. Until then, no existing file has changed.
install_files() {
    local file name
    [[ -e $output/index.txt ]] || : >"$work/index.txt"
    [[ -e $output/serial ]] || echo 1000 >"$work/serial"
    for name in ${clients[@]+"${clients[@]}"}; do
        rm -f "$work/$name.csr"
    done
    for file in "$work"/*; do
        name=${file##*/}
        case $name in
            *.key) chmod 600 "$file" ;;
            *) chmod 644 "$file" ;;
        esac
        mv -f "$file" "$output/$name"
    done
}

main() {
    read_options "$@"
    ((${#domains[@]} > 0)) || domains=(localhost)
    check_options
    command -v openssl >/dev/null 2>&1 || fail "openssl is not installed (or not in PATH)"
    # Otherwise Git Bash converts subjects to paths.
    export MSYS_NO_PATHCONV=1
    mkdir -p -- "$output" || fail "cannot create the directory $output"
    work=$(mktemp -d "$output/.new.XXXXXX") || fail "cannot write to $output"
    trap 'rm -rf -- "$work"' EXIT
    trap 'exit 1' HUP INT TERM

    local name
    alternative_names
    write_config
    authority
    [[ ! -e $output/server.crt ]] || echo "replacing the server certificate in $output"
    certificate server server "${domains[0]}"
    for name in ${clients[@]+"${clients[@]}"}; do
        certificate "$name" client "$name"
    done
    install_files

    echo "server certificate for ${alt_names//,/, }"
    echo "written to $output; clients and edges need ca.crt; keep ca.key secret"
}

main "$@"
