"""The shared vectors as members of a verify request: whatever can stand in its `token`, `proof`, `method`, `url` or `action`."""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from agentauth.protocol.encoding import b64u_encode, canonical_json
from agentauth.protocol.keys import Signer

from .shared import b, files, load

# What is asked elsewhere than at verify.
NOT_ASKED = {
    "merkle_proofs": "proofs of the log, which is only read",
    "own_passkey_cases": "answers of passkeys, which are given to pages",
    "webauthn_l3_vectors": "the same",
}
Question = Mapping[str, Any]


class Questions:
    """Each vector in a request that is otherwise good. `good` is such a request, and `claims` are those of its proof."""

    def __init__(self, good: Question, claims: Question, signer: Signer) -> None:
        self.good, self._claims, self._signer = good, claims, signer

    def all(self) -> Iterator[tuple[str, Question]]:
        """(name of the vector, request), of every file of the folder that is not in `NOT_ASKED`."""
        for file in files():
            if file not in NOT_ASKED:
                for name, members in getattr(self, f"_{file}")(load(file)):
                    yield f"{file} {name}", {**self.good, **members}

    def _own_dpop_cases(self, doc: Any) -> Iterator[tuple[str, Question]]:
        for case in doc["cases"]:
            yield case["id"], dpop_case(case)

    def _own_token_cases(self, doc: Any) -> Iterator[tuple[str, Question]]:
        for case in doc["cases"]:
            yield case["id"], {"token": case["token"]}

    def _rfc_examples(self, doc: Any) -> Iterator[tuple[str, Question]]:
        rfc = doc["rfc9449"]
        for proof in rfc["proofs"]:
            yield proof["use"], {"proof": proof["jwt"], "method": proof["htm"], "url": proof["htu"]}
            yield proof["use"], {"token": rfc["access_token"], "proof": proof["jwt"]}
        yield from self._texts("rfc8037", doc["rfc8037"]["jws"])
        yield from self._keys("rfc8037", doc["rfc8037"]["jwk_private"])
        yield from self._texts("note", doc["signed_note"]["text"] + doc["signed_note"]["signature_line"])
        for encoding in doc["ed25519_low_order_encodings_hex"]:
            yield encoding, {"proof": self._proof(_okp(encoding), bytes(64))}

    def _wycheproof_jws(self, doc: Any) -> Iterator[tuple[str, Question]]:
        for group in doc["testGroups"]:
            for case in group["tests"]:
                # Encrypted ones have no `jws`; those that are no compact text are put as the objects they are.
                yield from self._texts(str(case["tcId"]), case.get("jws", case.get("jwe")))
            for side in ("public", "private"):
                yield from self._keys(f"{group['comment']} {side}", group.get(side, {}))

    _wycheproof_jwk = _wycheproof_jwcrypto = _wycheproof_jws

    def _wycheproof_ed25519(self, doc: Any) -> Iterator[tuple[str, Question]]:
        for group in doc["testGroups"]:
            for case in group["tests"]:
                yield (
                    str(case["tcId"]),
                    {"proof": self._proof(_okp(group["publicKey"]["pk"]), b(case["sig"]))},
                )

    def _wycheproof_es256_p1363(self, doc: Any) -> Iterator[tuple[str, Question]]:
        for group in doc["testGroups"]:
            point = b(group["publicKey"]["uncompressed"])
            x, y = b64u_encode(point[1:33]), b64u_encode(point[33:])
            for case in group["tests"]:
                jwk = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
                yield str(case["tcId"]), {"proof": self._proof(jwk, b(case["sig"]), "ES256")}

    def _cctv_ed25519(self, doc: Any) -> Iterator[tuple[str, Question]]:
        for number, key, signature, _, _ in doc["vectors"]:
            yield str(number), {"proof": self._proof(_okp(key), b(signature))}

    def _ed25519_speccheck(self, doc: Any) -> Iterator[tuple[str, Question]]:
        for number, case in enumerate(doc["cases"]):
            yield str(number), {"proof": self._proof(_okp(case["pub_key"]), b(case["signature"]))}

    @staticmethod
    def _texts(name: str, value: object) -> Iterator[tuple[str, Question]]:
        yield f"{name} as token", {"token": value}
        yield f"{name} as proof", {"proof": value}

    def _keys(self, name: str, key: Question) -> Iterator[tuple[str, Question]]:
        """Each key in a proof that somebody else signed."""
        for jwk in (key, *key.get("keys", ())):
            message = self._message(jwk, "EdDSA")
            yield f"{name} {jwk.get('kid')}", {"proof": _compact(message, self._signer.sign(message))}

    def _proof(self, jwk: Question, signature: bytes, alg: str = "EdDSA") -> str:
        return _compact(self._message(jwk, alg), signature)

    def _message(self, jwk: Question, alg: str) -> bytes:
        header = {"typ": "dpop+jwt", "alg": alg, "jwk": jwk}
        return ".".join(b64u_encode(canonical_json(part)) for part in (header, self._claims)).encode()


def dpop_case(case: Question) -> Question:
    """What a service provider asks that was sent these header lines; several under one name as one, as proxies do."""
    _, _, token = ", ".join(case["authorization"]).partition(" ")
    members = {"token": token, "method": case["method"], "url": case["url"]}
    return members | {"proof": ", ".join(case["dpop"])}


def _okp(encoding: str) -> dict[str, str]:
    return {"kty": "OKP", "crv": "Ed25519", "x": b64u_encode(b(encoding))}


def _compact(message: bytes, signature: bytes) -> str:
    return f"{message.decode()}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
