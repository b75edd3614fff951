"""Measures time and memory of the offline log verifiers: `python -m benchmarks.verify_log`.

Makes an export and an archive of synthetic events, signed with its own key, and has each verifier
check both in a separate process. Fails if one finds a root other than the expected one. Prints
Markdown for benchmarks/README.md.
"""

import argparse
import base64
import gzip
import hashlib
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from agentauth.protocol.checkpoint import Checkpoint, sign_checkpoint
from agentauth.protocol.encoding import b64u_encode, canonical_json
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.log_hashes import CompactTree, canonical_entry_hash, leaf_hash
from agentauth.protocol.signed_notes import verifier_key
from benchmarks.system_under_test import machine
from tests.live import ROOT

ORIGIN = "registry.example/v1/audit"
EVENTS = 1_000_000
SEGMENT = 100_000
CHECKPOINT = 5_000
VERIFIERS = {
    "Python": [sys.executable, str(ROOT / "agentauth/sdk/verify_log.py")],
    "JavaScript": ["node", str(ROOT / "tests/interop/verify_log.mjs")],
}
# A process's peak memory includes that of its parent at fork, so the parent has to be small.
LAUNCHING = """
import json, resource, subprocess, sys
subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
json.dump({"cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss}, sys.stderr)
"""
LAUNCHER = [sys.executable, "-I", "-S", "-c", LAUNCHING]
KIB = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentauth-bench-") as directory:
        made = Made(Path(directory), options.events)
        print(machine())
        print(
            f"\n{options.events:,} events, {made.line_bytes:,} bytes of lines, "
            f"{made.packed_bytes:,} packed\n"
        )
        print("| verifier | folder | seconds | events/s | CPU s | peak MB |")
        print("|---|---|---|---|---|---|")
        for (name, command), kind in itertools.product(VERIFIERS.items(), ("export", "archive")):
            runs = sorted(made.measure(command, kind) for _ in range(options.runs))
            seconds, cpu, peak = runs[len(runs) // 2]
            rate = options.events / seconds
            print(
                f"| {name} | {kind} | {seconds:.1f} | {rate:,.0f} | {cpu:.1f} | {peak:.0f} |",
                flush=True,
            )


class Made:
    """An export and an archive of the same events."""

    def __init__(self, directory: Path, events: int) -> None:
        self.directory, self.events = directory, events
        key = PrivateKey.generate("EdDSA")
        self.signer = LocalSigner(key)
        (directory / "keys").write_text(verifier_key(ORIGIN, key.public) + "\n")
        for part in ("export", "archive/segments", "archive/objects", "archive/checkpoints"):
            (directory / part).mkdir(parents=True)
        self.tree = CompactTree()
        self.line_bytes = 0
        self.previous: str | None = None
        lines = self._lines()
        with gzip.open(directory / "export/lines.gz", "wb") as whole:
            while self.tree.size < events:
                self._segment(list(itertools.islice(lines, SEGMENT)), whole)
        self.packed_bytes = (directory / "export/lines.gz").stat().st_size
        (directory / "export/checkpoint").write_text(self._note())

    def measure(self, command: list[str], kind: str) -> tuple[float, float, float]:
        """Seconds, CPU seconds, peak memory (MB) of one run, which must find the expected root."""
        given = [
            *command,
            str(self.directory / kind),
            "--trusted-keys",
            str(self.directory / "keys"),
        ]
        began = time.monotonic()
        done = subprocess.run([*LAUNCHER, *given], capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        answer, used = (json.loads(text) for text in (done.stdout, done.stderr))
        root = base64.b64encode(self.tree.root()).decode()
        if not answer["ok"] or (answer["tree_size"], answer["root_hash"]) != (self.events, root):
            raise SystemExit(f"The verifier finds another log: {answer}")
        return seconds, used["cpu"], used["peak"] * KIB / 1e6

    def _lines(self) -> Iterator[bytes]:
        """A verifier's decisions and what is recorded with them, for 100 agents; random salts."""
        chance = random.Random(1)
        ids = [[str(uuid.UUID(int=chance.getrandbits(128))) for _ in range(4)] for _ in range(100)]
        for index in range(self.events):
            agent, human, provider, grant = ids[index % 100]
            refused = index % 20 == 0
            event = {
                "id": str(uuid.UUID(int=chance.getrandbits(128))),
                "kind": "verifier.decision.denied" if refused else "verifier.decision.allowed",
                "at": f"2026-11-25T09:30:00.{index % 1_000_000:06d}Z",
                "actor": {"kind": "service_provider", "id": provider},
                "agent_id": agent,
                "human_id": human,
                "service_provider_id": provider,
                "grant_id": grant,
                "token_jti": str(uuid.UUID(int=chance.getrandbits(128))),
                "outcome": "denied" if refused else "success",
                "request_id": str(uuid.UUID(int=chance.getrandbits(128))),
                "data": {
                    "action": {"type": "read", "resource": "calendar/work"},
                    "proof_jti": f"p-{index}",
                },
            }
            salt, text = chance.randbytes(32), canonical_json(event)
            self.tree.append(leaf_hash(canonical_entry_hash(text, salt)))
            yield f"{index} {b64u_encode(salt)} ".encode() + text + b"\n"
            if self.tree.size % CHECKPOINT == 0:
                place = self.directory / f"archive/checkpoints/{self.tree.size:020}"
                place.write_text(self._note())

    def _segment(self, lines: list[bytes], whole: gzip.GzipFile) -> None:
        text = b"".join(lines)
        self.line_bytes += len(text)
        whole.write(text)
        end = self.tree.size
        parts = {}
        for part, ending, data in (
            ("lines", "lines.gz", gzip.compress(text, mtime=0)),
            ("parquet", "parquet", text[: len(text) // 8]),
        ):
            digest = hashlib.sha256(data).hexdigest()
            key = f"objects/{digest}.{ending}"
            (self.directory / "archive" / key).write_bytes(data)
            parts[part] = {"key": key, "sha256": digest, "bytes": len(data)}
        first = end - len(lines)
        ours = {
            "version": 1,
            "origin": ORIGIN,
            "first": first,
            "end": end,
            "checkpoint": self._note(),
        }
        manifest = canonical_json(ours | parts | {"previous": self.previous})
        (self.directory / f"archive/segments/{first:020}.json").write_bytes(manifest)
        self.previous = hashlib.sha256(manifest).hexdigest()

    def _note(self) -> str:
        return sign_checkpoint(
            Checkpoint(ORIGIN, self.tree.size, self.tree.root()), signer=self.signer
        )


if __name__ == "__main__":
    main()
