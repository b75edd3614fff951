"""What a forger does: someone else's signed object with one letter changed."""


def changed_signature(compact: str) -> str:
    """The same header and payload under a signature with one letter changed.

    Not its last letters: an Ed25519 signature ends in a zero byte one time in sixteen, and the last
    letter carries two bits, so putting an `A` there may change nothing.
    """
    message, _, signature = compact.rpartition(".")
    middle = len(signature) // 2
    other = "A" if signature[middle] != "A" else "B"
    return f"{message}.{signature[:middle]}{other}{signature[middle + 1 :]}"
