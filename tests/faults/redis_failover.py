"""A primary of Redis that dies while its replica is promoted by Sentinels."""

import time

from tests.faults.stage import Stage, until
from tests.redis_servers import Server, Watched

PROMOTED_SECONDS = 60


def kill_the_primary(watched: Watched) -> Server:
    """Kill it, and wait until its replica is the primary; returns the killed one, which is to be started again."""
    lost = watched.primary()
    [replica] = [node for node in watched.nodes if node is not lost]
    client = replica.client()
    lost.kill()
    end = time.monotonic() + PROMOTED_SECONDS
    while client.info("replication")["role"] != "master":
        assert time.monotonic() < end, "no replica took over"
        time.sleep(0.01)
    return lost


def follow(watched: Watched, lost: Server) -> None:
    """Start it; it comes back as a replica of the other, once it has all of its data.

    Only when every Sentinel names the other as the primary. One that was still at work would find the former primary
    back, empty, break its failover off and make the other its replica.
    """
    [primary] = [node for node in watched.nodes if node is not lost]
    until(lambda: watched.named() == {primary.port}, "the Sentinels do not agree on the new primary")
    lost.start()

    def follows() -> bool:
        told = lost.client().info("replication")
        return bool(told["role"] == "slave" and told["master_link_status"] == "up")

    until(follows, "the former primary does not follow the new one")


def fail_over(stage: Stage, seconds: float) -> None:
    """For a scenario: the former primary is back after so many seconds."""
    watched = stage.redis
    assert isinstance(watched, Watched)
    lost = kill_the_primary(watched)
    time.sleep(seconds)
    follow(watched, lost)
