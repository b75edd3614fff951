#!/bin/sh
# make-secrets.sh [HOST]: create the secrets and certificates of compose.yaml in deploy/secrets.
#
# HOST is the host name in PUBLIC_URL, by default localhost. Nothing is overwritten: to start again
# with new secrets, delete the folder and the volumes (`docker compose down --volumes`).
set -eu
umask 027
host=${1:-localhost}
cd "$(dirname "$0")"
# The containers read the secrets as members of your group, so its other members could read them
# too. An account without a shell is no person's.
group=$(id -g)
command -v getent >/dev/null || {
  echo "There is no getent here: see to it that your group $(id -gn) has no other members." >&2
  getent() { :; }
}
others=$({
  getent passwd | awk -F: -v group="$group" '
    $4 == group && $7 !~ /(nologin|false|sync|shutdown|halt)$/ { print $1 }'
  getent group "$group" | cut -d: -f4 | tr , '\n'
} | grep -vxF "$(id -un)" | xargs)
test -z "$others" || {
  echo "Your group $(id -gn) has other members, who could read the secrets: $others." >&2
  echo "Make a group for yourself alone, and run: sg GROUP deploy/make-secrets.sh" >&2
  exit 1
}
test ! -e secrets || { echo "deploy/secrets is there already: nothing was changed" >&2; exit 1; }
rm -rf secrets.new
mkdir secrets.new
cd secrets.new
random() { openssl rand -hex 24; }
put() { cat > "$1"; }

# Of the registry.
openssl rand -base64 48 | put secret_key
echo "1:$(openssl rand -base64 32 | tr '+/' '-_' | tr -d '=')" | put subject_key
random | tr -d '\n' | put metrics_token

# PostgreSQL: the superuser, the three roles, and who may connect through PgBouncer.
owner=$(random) serving=$(random) verifier=$(random)
random | put postgres_password
put roles.sql <<EOF
CREATE ROLE agentauth_owner LOGIN PASSWORD '$owner';
CREATE ROLE agentauth_serving LOGIN PASSWORD '$serving';
CREATE ROLE agentauth_verifier LOGIN PASSWORD '$verifier';
CREATE DATABASE agentauth OWNER agentauth_owner;
-- PgBouncer ignores the limits that a web server sets when it connects (docs/operations.md).
ALTER ROLE agentauth_serving SET statement_timeout = '2s';
ALTER ROLE agentauth_serving SET lock_timeout = '1600ms';
ALTER ROLE agentauth_serving SET idle_in_transaction_session_timeout = '30s';
ALTER ROLE agentauth_serving SET enable_seqscan = off;
ALTER ROLE agentauth_serving SET jit = off;
EOF
echo "\"agentauth_serving\" \"$serving\"" | put pgbouncer_users
echo "postgres://agentauth_owner:$owner@postgres:5432/agentauth" | put database_owner_url
echo "postgres://agentauth_serving:$serving@postgres:5432/agentauth" | put database_url
echo "postgres://agentauth_serving:$serving@pgbouncer:6432/agentauth" | put database_pool_url
echo "postgres://agentauth_verifier:$verifier@postgres:5432/agentauth" | put database_verifier_url

# Redis: a caller without a password may only ask whether it is up. The registry reaches its own
# keys alone (docs/operations.md, Redis).
redis=$(random)
put redis_users <<EOF
user default on nopass resetkeys resetchannels -@all +ping
user agentauth on >$redis ~aa:* +@read +@write +@connection +evalsha +script|load +time +cluster|slots +cluster|info -@admin -@dangerous +info -scan -randomkey -function -client|tracking
EOF
echo "redis://agentauth:$redis@redis:6379/0" | put redis_url

# OpenBao: the key that unseals it, and the registry's login.
openssl rand 32 | put openbao_unseal_key
random | tr -d '\n' | put openbao_secret_id

# The object store: its administrator, and the registry's user as `mc` and as the registry read it.
# Grafana's administrator.
random | put store_password
store=$(random)
printf 'agentauth\n%s\n' "$store" | put store_user
printf '[default]\naws_access_key_id = agentauth\naws_secret_access_key = %s\n' "$store" \
  | put store_credentials
random | put grafana_password

# Certificates: an authority whose key is deleted, one for the proxy, one for OpenBao and the store.
curve='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
# shellcheck disable=SC2086
openssl req -x509 $curve -days 825 -subj '/CN=AgentAuth on this host' -keyout ca.key -out ca.pem \
  -addext 'keyUsage=critical,keyCertSign,cRLSign' 2>/dev/null
certificate() { # NAME NAMES
  # shellcheck disable=SC2086
  openssl req $curve -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" 2>/dev/null
  put extensions <<EOF
subjectAltName=$2
basicConstraints=critical,CA:FALSE
extendedKeyUsage=serverAuth
authorityKeyIdentifier=keyid
EOF
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 \
    -extfile extensions -out "$1.pem" 2>/dev/null
  chmod g+r "$1.key"
}
certificate proxy "DNS:$host"
certificate inside 'DNS:openbao,DNS:store,DNS:localhost,IP:127.0.0.1'
rm -f ca.key ca.srl extensions ./*.csr

cd ..
mv secrets.new secrets
# The processes in the containers read the files as members of this group.
grep -qs '^SECRETS_GID=' .env || echo "SECRETS_GID=$(id -g)" >> .env
echo "deploy/secrets is made. Trust deploy/secrets/ca.pem in your browser to use passkeys."
