"""A Redis primary dies while Sentinels promote its replica."""

import time

from tests.faults.stage import Stage
from tests.redis_servers import Server, Watched
from tests.waiting import SETTLE_SECONDS, until


def kill_the_primary(watched: Watched) -> Server:
    """Kill the primary and wait until its replica is promoted; returns the killed server."""
    lost = watched.primary()
    [replica] = [node for node in watched.nodes if node is not lost]
    client = replica.client()
    lost.kill()
    # A Sentinel that found itself stalled does nothing for half a minute.
    end = time.monotonic() + SETTLE_SECONDS
    while client.info("replication")["role"] != "master":
        assert time.monotonic() < end, "no replica took over"
        time.sleep(0.01)
    return lost


def follow(watched: Watched, lost: Server) -> None:
    """Start the former primary as a replica, and wait until it has all data.

    Only once every Sentinel names the new primary: a Sentinel still busy would find the former
    primary back and empty, abort the failover and make the new primary its replica.
    """
    [primary] = [node for node in watched.nodes if node is not lost]
    until(
        lambda: watched.named() == {primary.port}, "the Sentinels do not agree on the new primary"
    )
    lost.start()

    def follows() -> bool:
        told = lost.client().info("replication")
        return bool(told["role"] == "slave" and told["master_link_status"] == "up")

    until(follows, "the former primary does not follow the new one")


def fail_over(stage: Stage, seconds: float) -> None:
    """As a fault: the former primary is back after `seconds`."""
    watched = stage.redis
    assert isinstance(watched, Watched)
    lost = kill_the_primary(watched)
    time.sleep(seconds)
    follow(watched, lost)
