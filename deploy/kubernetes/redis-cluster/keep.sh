# Keeps the six servers together. At the first start it assigns the slots; after that it connects
# servers whose addresses have changed. Redis does all else itself.
set -u
peers=${PEERS:-$(for part in a b c; do echo "redis-$part-0.redis redis-$part-1.redis"; done)}
port=${PORT:-6379}
REDISCLI_AUTH=$(sed -n 's/^masterauth //p' "${LOGIN:-/run/secrets/agentauth/redis_login}")
export REDISCLI_AUTH
own() { redis-cli --user keeper -h "${HOST:-127.0.0.1}" -p "$port" "$@" 2>&1; }

# The columns of `cluster nodes`: id, address, flags, primary, ping, pong, epoch, link, slots.
owner_of() { # SLOT: the id of the server that has it and answers
  echo "$nodes" | awk -v slot="$1" '$3 ~ /master/ && $3 !~ /fail/ { for (i = 9; i <= NF; i++) {
    n = split($i, ends, "-"); if (ends[1] <= slot && slot <= ends[n] + 0) print $1 } }'
}

turn() {
  nodes=$(own cluster nodes)
  for peer in $peers; do
    address=$(getent hosts "$peer" | awk '{ print $1; exit }')
    case $nodes in
      *" $address:$port@"*) ;;
      *) [ -z "$address" ] || own cluster meet "$address" "$port" > /dev/null ;;
    esac
  done
  # A server with slots, or a replica, lacks nothing.
  echo "$nodes" | awk '$3 == "myself,master" && NF == 8' | grep -q . || return
  # A server that does not see all six might take slots that another has.
  known=$(echo "$nodes" | awk '$8 == "connected" && $3 !~ /fail|handshake|noaddr/' | wc -l)
  [ "$known" -eq "$(echo $peers | wc -w)" ] || return
  name=${NAME:-$(hostname)}
  case $name in redis-a-*) part=0 ;; redis-b-*) part=1 ;; redis-c-*) part=2 ;; esac
  first=$((16384 * part / 3)) last=$((16384 * (part + 1) / 3 - 1))
  owner=$(owner_of "$first")
  if [ -n "$owner" ]; then
    own cluster replicate "$owner"
  elif [ "${name##*-}" = 0 ]; then
    own cluster addslotsrange "$first" "$last"
  fi
}

# The first process of a container ignores SIGTERM unless it says otherwise.
trap 'exit 0' TERM
while :; do
  turn
  sleep "${EVERY:-5}" &
  wait $!
done
