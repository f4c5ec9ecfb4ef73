#!/bin/sh
# What must be there before the servers start. Runs to its end on every `docker compose up`; repeating it changes nothing.
set -eu
umask 077
mkdir -p "$AIRFLOW_HOME/logs"

# The whole file or none: Airflow may be reading it.
passwords=$AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE
printf %s "$AIRFLOW_ADMIN_PASSWORD" |
    python -c 'import json, sys; json.dump({"admin": sys.stdin.read()}, sys.stdout)' >"$passwords.new"
mv "$passwords.new" "$passwords"

airflow db migrate
python -m serving initialise
