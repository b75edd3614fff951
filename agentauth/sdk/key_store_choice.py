"""The key stores by name, for a command line's option `--key-store`."""

from os import PathLike
from pathlib import Path
from typing import Final, Literal, get_args

from agentauth.protocol.errors import InvalidRequestError

from .key_file import KeyFile, default_path
from .key_store import EnvironmentStore, KeyStore
from .url_checks import check_registry_url

KeyStoreName = Literal["file", "keyring", "env"]
KEY_STORES: Final[tuple[str, ...]] = get_args(KeyStoreName)


def choose_key_store(
    name: str, registry_url: str, key_file: str | PathLike[str] | None
) -> KeyStore:
    """The store of this name for the agent at this registry. `key_file` is for `file` alone.

    Raises AddressError, InvalidRequestError, and ImportError if `keyring` is not installed.
    """
    registry = check_registry_url(registry_url)
    if name not in KEY_STORES:
        raise InvalidRequestError(f"The key store must be one of {', '.join(KEY_STORES)}.")
    if name == "file":
        return KeyFile(Path(key_file) if key_file else default_path(registry))
    if key_file:
        # Not ignored: the command would act as another agent than the file's.
        raise InvalidRequestError(
            f"A key file ({key_file}) does not go with the key store {name}. Leave out "
            "--key-file, and unset AGENTAUTH_KEY_FILE; or use the key store file."
        )
    if name == "env":
        return EnvironmentStore()
    from .keyring_store import KeyringStore

    return KeyringStore()
