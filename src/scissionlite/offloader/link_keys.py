"""The keys of a link: CURVE encrypts it, and each side proves to the other who it is.

CURVE is ZeroMQ's CurveCP over TCP (https://rfc.zeromq.org/spec/26): Curve25519, with new keys for
every connection, so that a secret that leaks later does not open what was recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scissionlite.keys.authorized import AuthorizedKeys
from scissionlite.keys.files import read_public, read_secret

if TYPE_CHECKING:
    import zmq


class EdgeKeys:
    """An edge daemon's secret key, and the public keys of the devices that may use it.

    Parameters
    ----------
    secret
        File of the daemon's secret key, as ``scissionlite keys make`` writes it.
    authorized
        File of the devices' public keys, one a line (``scissionlite keys authorize`` adds them).
        It is read again when it changes: a key that is taken out is refused from then on.
    admin
        File of the public keys, of those, that may change the bundles that are served
        (``scissionlite bundles``), in the same form; None allows nobody to.

    Raises
    ------
    KeyFileError
        If a file cannot be read, is not what it should be, or others than its owner can read the
        secret or write the list; or if this machine's ZeroMQ has no CURVE.
    """

    def __init__(
        self, secret: str | Path, authorized: str | Path, admin: str | Path | None = None
    ) -> None:
        self._secret = read_secret(secret, "link")
        self._authorized = Path(authorized)
        self._admin = None if admin is None else Path(admin)
        # What is wrong with the files is said now.
        self.authorized_keys()
        self.admin_keys()

    @property
    def public(self) -> str:
        """The daemon's public key, in base64."""
        return self._secret.public.key

    def authorized_keys(self) -> AuthorizedKeys:
        """Read the file of authorised keys; one reader a server."""
        return AuthorizedKeys(self._authorized)

    def admin_keys(self) -> AuthorizedKeys | None:
        """Read the file of administrators' keys; one reader a server."""
        return None if self._admin is None else AuthorizedKeys(self._admin)

    def secure(self, each: zmq.Socket[bytes]) -> None:
        """Have a socket that will listen take only encrypted connections of known keys."""
        each.curve_server = 1
        each.curve_secretkey = self._secret.raw


class DeviceKeys:
    """The secret key of a device or an edge client, and the edge daemon's public key.

    Parameters
    ----------
    secret
        File of the device's secret key, as ``scissionlite keys make`` writes it.
    edge
        File of the daemon's public key (``.pub``): a daemon with another key is not talked to.

    Raises
    ------
    KeyFileError
        If a file cannot be read or is not what it should be, or others than its owner can read
        the secret or write the public key; or if this machine's ZeroMQ has no CURVE.
    """

    def __init__(self, secret: str | Path, edge: str | Path) -> None:
        self._secret = read_secret(secret, "link")
        self._edge = read_public(edge, "link")

    @property
    def public(self) -> str:
        """The device's public key, in base64."""
        return self._secret.public.key

    def secure(self, each: zmq.Socket[bytes]) -> None:
        """Have a socket that will connect encrypt, and talk only to the edge daemon's key."""
        each.curve_secretkey = self._secret.raw
        each.curve_publickey = self._secret.public.raw
        each.curve_serverkey = self._edge.raw
