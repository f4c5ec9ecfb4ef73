#!/bin/sh
# Adds the secrets that docker-compose.yaml asks for to .env, each only if it is not there yet.
# The values are URL-safe: they become part of database addresses.
set -eu
umask 077
cd "$(dirname "$0")/../.."
file=${1:-.env}
touch "$file"
chmod 600 "$file"
# A last line without an end would swallow the first secret.
[ -z "$(tail -c 1 "$file")" ] || echo >>"$file"

random() { # number of bytes, as URL-safe base64
    head -c "$1" /dev/urandom | base64 | tr -d '\n' | tr '+/' '-_'
}

add() { # name, number of bytes
    grep -q "^$1=." "$file" || echo "$1=$(random "$2")" >>"$file"
}

# Multiples of three need no padding; Fernet wants its 32 bytes exactly.
add POSTGRES_PASSWORD 24
add AIRFLOW_ADMIN_PASSWORD 15
add AIRFLOW_JWT_SECRET 48
add AIRFLOW_FERNET_KEY 32
add PSEUDONYM_KEY 48
add VERDICT_KEY 48
echo "  The secrets are in $file. Airflow's user is admin, its password is AIRFLOW_ADMIN_PASSWORD."
