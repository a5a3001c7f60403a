"""An OpenID Connect provider of another make: Canaille, started by the tests on loopback as its own process."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType

import httpx
import tomlkit
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.support.ports import free_port

PROGRAM = Path(sys.executable).with_name("canaille")
START_S = 60
STOP_S = 20


class OidcProvider:
    """A running provider with its own signing keys; a context manager that waits until they are published."""

    def __init__(self, *, lifetime_s: int = 3600) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="hsmkms-oidc-"))
        self.log = self.directory / "log"
        self._lifetime_s = lifetime_s
        self._signing_key = _new_key()
        self._older_keys: list[dict[str, str]] = []
        self._secret_key = secrets.token_hex(32)
        self._password = secrets.token_urlsafe(24)
        self._subjects: set[str] = set()
        self._audiences: set[str] = set()
        self._last_issued: dict[tuple[str, str], float] = {}
        self._token_endpoint = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def issuer(self) -> str:
        """The issuer, as in discovery and in every token."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> OidcProvider:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it serves its key; nothing is left behind when it does not."""
        try:
            self._start_server()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop and remove."""
        self._stop_server()
        shutil.rmtree(self.directory, ignore_errors=True)

    def rotate(self, keep_old: bool) -> None:
        """Sign with a new key from now on; the older keys stay published only when `keep_old`.

        The provider reads its keys when it starts, so it is started anew on the same port.
        """
        self._older_keys = [*self._older_keys, self._signing_key] if keep_old else []
        self._signing_key = _new_key()
        self._stop_server()
        self._start_server()

    def token(self, subject: str, audience: str) -> str:
        """A fresh access token from the token endpoint: a JWT of `subject` for `audience`."""
        self._register(subject, audience)
        # Tokens have no "jti" here, so two of one second are the same text, and the provider fails on the second.
        now, last = time.time(), self._last_issued.get((subject, audience), 0)
        if int(now) <= int(last):
            time.sleep(int(last) + 1 - now)
        # The password grant: this provider's access tokens of the client credentials grant are opaque.
        form = {
            "grant_type": "password",
            "username": subject,
            "password": self._password,
            "client_id": audience,
            "client_secret": self._password,
            "scope": "openid profile",
        }
        answer = httpx.post(self._token_endpoint, data=form, timeout=30)
        assert answer.status_code == 200, answer.text
        self._last_issued[subject, audience] = time.time()
        return str(answer.json()["access_token"])

    def _register(self, subject: str, audience: str) -> None:
        """Create the user and the client that are not there yet, in one run of the provider's command line."""
        models: dict[str, list[dict[str, object]]] = {}
        if subject not in self._subjects:
            user = {"id": str(uuid.uuid4()), "user_name": subject, "formatted_name": subject, "family_name": subject}
            models["user"] = [{**user, "password": self._password}]
        if audience not in self._audiences:
            # Audiences are clients to this provider, so every audience is a client that asks for itself.
            client = {"id": str(uuid.uuid4()), "client_id": audience, "client_name": audience}
            credentials = {"client_secret": self._password, "token_endpoint_auth_method": "client_secret_post"}
            allowed = {"audience": [client["id"]], "grant_types": ["password"], "scope": ["openid", "profile"]}
            models["client"] = [{**client, **credentials, **allowed}]
        if models:
            self._run("restore", stdin=json.dumps(models).encode())
            self._subjects.add(subject)
            self._audiences.add(audience)

    def _configure(self) -> None:
        settings = {
            "SECRET_KEY": self._secret_key,
            "SERVER_NAME": f"127.0.0.1:{self.port}",
            "PREFERRED_URL_SCHEME": "http",
            "OAUTH2_TOKEN_EXPIRES_IN": {"password": self._lifetime_s},
            # A file, so that users and clients outlive a rotation.
            "CANAILLE_SQL": {"DATABASE_URI": f"sqlite:///{self.directory / 'database'}"},
            "CANAILLE_OIDC": {"ACTIVE_JWKS": [self._signing_key], "INACTIVE_JWKS": self._older_keys},
        }
        (self.directory / "canaille.toml").write_text(tomlkit.dumps(settings))

    def _environment(self) -> dict[str, str]:
        # Nothing else: the provider also takes settings from the environment.
        return {"PATH": os.defpath, "LANG": "C.UTF-8", "CANAILLE_CONFIG": str(self.directory / "canaille.toml")}

    def _run(self, *arguments: str, stdin: bytes) -> None:
        done = subprocess.run(
            [str(PROGRAM), *arguments],
            input=stdin,
            capture_output=True,
            env=self._environment(),
            cwd=self.directory,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()

    def _start_server(self) -> None:
        self._configure()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(PROGRAM), "run", "--bind", f"127.0.0.1:{self.port}"],
                env=self._environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_until_ready(self._process)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Until discovery leads to the signing key: whoever else may listen on the port does not have it."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise AssertionError(f"the provider ended:\n{self.log.read_text()}")
            try:
                discovery = httpx.get(f"{self.issuer}/.well-known/openid-configuration", timeout=5).json()
                keys = httpx.get(discovery["jwks_uri"], timeout=5).json()["keys"]
            except (httpx.TransportError, ValueError, KeyError):
                keys = []
            if self._signing_key["kid"] in [key["kid"] for key in keys]:
                self._token_endpoint = str(discovery["token_endpoint"])
                return
            time.sleep(0.05)
        raise AssertionError(f"the provider was not ready in {START_S} s:\n{self.log.read_text()}")

    def _stop_server(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _new_key() -> dict[str, str]:
    """A private RSA key as a JWK with an identifier."""
    key = RSAAlgorithm.to_jwk(rsa.generate_private_key(public_exponent=65537, key_size=2048), as_dict=True)
    # Without "alg" the provider signs RS512; its settings only take members that are strings, "key_ops" is a list.
    members = {name: value for name, value in key.items() if isinstance(value, str)}
    return {**members, "alg": "RS256", "use": "sig", "kid": secrets.token_hex(8)}
