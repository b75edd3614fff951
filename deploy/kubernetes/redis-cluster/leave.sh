# Before a primary ends: let its replica take over, which takes a moment rather than the seconds
# after which the others miss it.
REDISCLI_AUTH=$(sed -n 's/^masterauth //p' "${LOGIN:-/run/secrets/agentauth/redis_login}")
export REDISCLI_AUTH
port=${PORT:-6379}
ask() { redis-cli --user agentauth -h "$@"; }
own() { ask "${HOST:-127.0.0.1}" -p "$port" "$@"; }
nodes() { own cluster nodes; }
id=$(own cluster myid)
replica=$(nodes | awk -v id="$id" '$3 == "slave" && $4 == id && $8 == "connected" {
  sub(/:.*/, "", $2); print $2; exit }')
[ -n "$replica" ] || exit 0
ask "$replica" -p "$port" cluster failover
for _ in 1 2 3 4 5 6 7 8 9 10; do
  nodes | grep -q ' myself,slave ' && exit 0
  sleep 0.5
done
