# Before a primary ends: let its replica take over, which takes a moment rather than the seconds
# after which the others miss it. Waits 20 s for a replica that is about to return or to be known.
REDISCLI_AUTH=$(sed -n 's/^masterauth //p' "${LOGIN:-/run/secrets/agentauth/redis_login}")
export REDISCLI_AUTH
port=${PORT:-6379}
ask() { redis-cli --user keeper -h "$@"; }
own() { ask "${HOST:-127.0.0.1}" -p "$port" "$@"; }

id=$(own cluster myid)
pause=0
for _ in $(seq 40); do
  nodes=$(own cluster nodes)
  # Only a server with slots has something to hand over.
  echo "$nodes" | awk '$3 == "myself,master" && NF > 8' | grep -q . || exit 0
  if [ "$pause" -eq 0 ]; then
    replica=$(echo "$nodes" | awk -v id="$id" '$3 == "slave" && $4 == id && $8 == "connected" {
      sub(/:.*/, "", $2); print $2; exit }')
    # Redis tries for 5 s.
    [ -z "$replica" ] || { ask "$replica" -p "$port" cluster failover; pause=10; }
  else
    pause=$((pause - 1))
  fi
  sleep 0.5
done
