"""The project's own vectors: the generator makes the committed files, production reads them."""

import json
from typing import Any

import pytest

from agentauth.protocol.agent_manifest import verify_manifest
from agentauth.protocol.dpop import verify_proof
from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.keys import parse_jwk
from agentauth.protocol.log_hashes import (
    EMPTY_LINK,
    CompactTree,
    entry_hash,
    field_commitment,
    leaf_hash,
    link,
)
from agentauth.protocol.passkey_statements import parse_statement

from . import adapter
from .generate import OWN, documents


def load(name: str) -> Any:
    return json.loads((OWN / f"{name}.json").read_text("utf-8"))


def rows(name: str) -> list[Any]:
    return [pytest.param(case, id=case["id"]) for case in load(name)["cases"]]


def test_the_committed_files_are_those_the_generator_makes() -> None:
    assert {path.name: path.read_text("utf-8") for path in OWN.iterdir()} == documents()


def test_keys_have_their_thumbprints() -> None:
    for row in load("keys")["keys"]:
        assert parse_jwk(row["jwk"]).thumbprint == row["jkt"]


@pytest.mark.parametrize("case", rows("proofs"))
def test_own_proof(case: Any) -> None:
    body = case["body"]
    refusal = adapter.outcome(
        lambda: verify_proof(
            case["proof"],
            expected_method=case["method"],
            expected_url=case["url"],
            access_token=case["access_token"],
            body=None if body is None else body.encode(),
            now=case["now"],
        )
    )
    assert reason(refusal) == case["reason"]


@pytest.mark.parametrize("case", rows("tokens"))
def test_own_token(case: Any) -> None:
    assert reason(adapter.token_outcome(load("tokens"), case)) == case["reason"]


def test_the_manifest_is_read() -> None:
    row = load("manifests")
    manifest = verify_manifest(row["manifest"], expected_audience=row["audience"], now=row["now"])
    assert (manifest.sha256, manifest.jkt) == (row["sha256"], load("keys")["keys"][0]["jkt"])


def test_statements_have_their_challenges() -> None:
    for row in load("statements")["statements"]:
        statement = parse_statement(row["statement"])
        assert statement.canonical().decode() == row["canonical"]
        assert b64u_encode(statement.challenge()) == row["challenge"]


def test_the_chain_is_followed_from_the_first_leaf() -> None:
    tree, previous = CompactTree(), EMPTY_LINK
    for row in load("chain")["leaves"]:
        name = row["openings"]["name"]
        commitment = field_commitment(name["value"], b64u_decode(name["salt"]))
        assert row["event"]["data"]["name"] == {"commitment": commitment}
        leaf = leaf_hash(entry_hash(row["event"], b64u_decode(row["salt"])))
        previous = link(previous, leaf)
        tree.append(leaf)
        assert b64u_encode(leaf) == row["leaf_hash"]
        assert b64u_encode(previous) == row["link"]
        assert b64u_encode(tree.root()) == row["root"]


def reason(refusal: AgentAuthError | None) -> str | None:
    return None if refusal is None else refusal.reason or refusal.code
