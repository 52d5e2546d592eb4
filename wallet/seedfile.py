"""The seed on disk: one small file, readable by its owner alone, optionally encrypted with a password.

The file is JSON. Plain: `{"version": 1, "mnemonic": ..., "passphrase": ...}`. Encrypted: that text under
ChaCha20-Poly1305 with a key from scrypt, both parameters and salt beside it. It is written once and never changed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from wallet.files import sync_directory
from wallet.keys import Seed, SeedError

SEED_FILE_NAME: Final = "seed"
_log = structlog.get_logger(__name__)
_SCRYPT_N: Final = 1 << 16
_SCRYPT_R: Final = 8
_SCRYPT_P: Final = 1
_AAD: Final = b"channeld seed v1"


class SeedFileError(Exception):
    """The seed file cannot be read or written; the text is a sentence that says what to do."""


class _Plain(msgspec.Struct, tag_field="form", tag="plain", forbid_unknown_fields=True):
    mnemonic: str
    passphrase: str = ""
    version: int = 1


class _Encrypted(msgspec.Struct, tag_field="form", tag="encrypted", forbid_unknown_fields=True):
    scrypt_n: int
    scrypt_r: int
    scrypt_p: int
    salt: bytes
    nonce: bytes
    ciphertext: bytes
    version: int = 1


def write_seed(path: Path, seed: Seed, password: str | None = None) -> None:
    """Create the file (mode 0600), durable before this returns. Raises SeedFileError if there is one already."""
    plain = _Plain(seed.mnemonic, seed.passphrase)
    content = msgspec.json.encode(plain if not password else _encrypt(plain, password))
    temporary = path.with_name(f"{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)  # left by a crash before anybody saw the words
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike rename, never replaces a seed that is there
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise SeedFileError(f"there is a seed at {path} already; it is never overwritten") from error
    except OSError as error:
        raise SeedFileError(f"cannot write the seed to {path}: {error.strerror}") from error


def read_seed(path: Path, password: str | None = None) -> Seed:
    """The seed in the file. Raises SeedFileError (missing, damaged, password wrong or missing)."""
    try:
        content = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise SeedFileError(f"cannot read the seed at {path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        _log.warning("the seed file can be read by others", path=str(path), mode=oct(mode & 0o777))
    try:
        stored = msgspec.json.decode(content, type=_Plain | _Encrypted)
        if stored.version != 1:
            raise SeedFileError(f"the seed at {path} was written by a newer version of this software")
        if isinstance(stored, _Encrypted):
            if not password:
                raise SeedFileError(f"the seed at {path} is encrypted: its password is needed")
            stored = _decrypt(stored, password, path)
        return Seed.restore(stored.mnemonic, stored.passphrase)
    except (msgspec.DecodeError, SeedError, UnicodeDecodeError) as error:
        raise SeedFileError(f"the seed file at {path} is damaged: restore it from the noted words") from error


def is_encrypted(path: Path) -> bool:
    """Whether a password is needed to read the file. Raises SeedFileError."""
    try:
        return isinstance(msgspec.json.decode(path.read_bytes(), type=_Plain | _Encrypted), _Encrypted)
    except OSError as error:
        raise SeedFileError(f"cannot read the seed at {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise SeedFileError(f"the seed file at {path} is damaged: restore it from the noted words") from error


def _key(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(password.encode())


def _encrypt(plain: _Plain, password: str) -> _Encrypted:
    salt, nonce = os.urandom(16), os.urandom(12)
    key = _key(password, salt, _SCRYPT_N, _SCRYPT_R, _SCRYPT_P)
    ciphertext = ChaCha20Poly1305(key).encrypt(nonce, msgspec.json.encode(plain), _AAD)
    return _Encrypted(_SCRYPT_N, _SCRYPT_R, _SCRYPT_P, salt, nonce, ciphertext)


def _decrypt(stored: _Encrypted, password: str, path: Path) -> _Plain:
    if not (1 < stored.scrypt_n <= 1 << 20 and 0 < stored.scrypt_r <= 16 and 0 < stored.scrypt_p <= 16):
        raise SeedFileError(f"the seed file at {path} is damaged: restore it from the noted words")
    try:
        key = _key(password, stored.salt, stored.scrypt_n, stored.scrypt_r, stored.scrypt_p)
        text = ChaCha20Poly1305(key).decrypt(stored.nonce, stored.ciphertext, _AAD)
    except InvalidTag as error:
        raise SeedFileError(f"the password for the seed at {path} is wrong, or the file is damaged") from error
    except ValueError as error:
        raise SeedFileError(f"the seed file at {path} is damaged: restore it from the noted words") from error
    return msgspec.json.decode(text, type=_Plain)
