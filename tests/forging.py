"""What a forger does: a signed object that is another's but for one letter."""


def changed_signature(compact: str) -> str:
    """The same header and payload under a signature of which one letter is another.

    Not its last letters: the last byte of an Ed25519 signature is zero one time in sixteen, and the last letter carries
    two bits, so that putting an `A` there may change nothing.
    """
    message, _, signature = compact.rpartition(".")
    middle = len(signature) // 2
    other = "A" if signature[middle] != "A" else "B"
    return f"{message}.{signature[:middle]}{other}{signature[middle + 1 :]}"
