"""`hsmkms import prepare`: what the service's side makes of it, and everything that can be wrong with its input."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from typer.testing import CliRunner

from hsmkms.cli.main import app
from hsmkms.errors import OperatorError
from tests.support.deployment import PROGRAM

NONCE = os.urandom(12)


@pytest.fixture(scope="module")
def private() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 4_096)


@pytest.fixture
def import_token(private: rsa.RSAPrivateKey, tmp_path: Path) -> Path:
    """The answer of GET /import_token in a file."""
    return write(tmp_path / "import-token.json", answer_of(private.public_key()))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write(tmp_path / "key", os.urandom(32))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def answer_of(public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, **changed: Any) -> bytes:
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    members = {"id": "x", "payload": base64.b64encode(pem).decode(), "nonce": base64.b64encode(NONCE).decode()}
    return json.dumps({name: value for name, value in {**members, **changed}.items() if value is not None}).encode()


def prepare(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run it where there is nothing of a deployment."""
    environment = {"PATH": os.environ["PATH"], "HSMKMS_STATE_DIR": "/nonexistent", "HSMKMS_WORKERS": "no number"}
    command = [str(PROGRAM), "import", "prepare", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=60, check=False)


def members_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    assert list(found) == ["payload", "encryptedNonce", "iv", "encryptionAlgorithm"]
    return found


def refusal(*arguments: str | Path, stdin: bytes = b"") -> str:
    """The one line that it ends with; inside this process, because one of its own costs a second."""
    done = CliRunner().invoke(app, ["import", "prepare", *map(str, arguments)], input=stdin)
    assert isinstance(done.exception, OperatorError), done.output
    assert done.output == ""
    assert "\n" not in done.exception.message
    return done.exception.message


def opened(private: rsa.RSAPrivateKey, members: dict[str, str]) -> bytes:
    """The key, as who has the private key finds it; it has to bring the nonce."""
    wrapped, encrypted, iv = (base64.b64decode(members[name]) for name in ("payload", "encryptedNonce", "iv"))
    sha1 = members["encryptionAlgorithm"] == "RSAES_OAEP_SHA_1"
    algorithm = hashes.SHA1() if sha1 else hashes.SHA256()
    key = private.decrypt(wrapped, rsa_padding.OAEP(rsa_padding.MGF1(algorithm), algorithm, None))
    if not sha1:
        assert AESGCM(key).decrypt(iv, encrypted, None) == NONCE
        return key
    decryptor, unpadder = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor(), padding.PKCS7(128).unpadder()
    plain = unpadder.update(decryptor.update(encrypted) + decryptor.finalize()) + unpadder.finalize()
    assert plain == NONCE
    return key


@pytest.mark.parametrize("options", [(), ("--sha1",)])
@pytest.mark.parametrize("length", [16, 24, 32])
def test_a_key_from_a_file(
    private: rsa.RSAPrivateKey, import_token: Path, tmp_path: Path, length: int, options: tuple[str, ...]
) -> None:
    key = write(tmp_path / "key", os.urandom(length))
    members = members_of(prepare(import_token, "--key", key, *options))
    assert members["encryptionAlgorithm"] == ("RSAES_OAEP_SHA_1" if options else "RSAES_OAEP_SHA_256")
    assert opened(private, members) == key.read_bytes()


def test_a_key_is_made(private: rsa.RSAPrivateKey, import_token: Path, tmp_path: Path) -> None:
    """From standard input to a file; both files are the owner's alone, whatever the umask."""
    made, output = tmp_path / "made", tmp_path / "members.json"
    umask = os.umask(0)
    try:
        done = prepare("--generate", made, "--output", output, stdin=import_token.read_bytes())
    finally:
        os.umask(umask)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made, output)] == [0o600, 0o600]
    assert len(made.read_bytes()) == 32
    assert opened(private, json.loads(output.read_bytes())) == made.read_bytes()


def test_no_file_is_overwritten(import_token: Path, key: Path, tmp_path: Path) -> None:
    before = key.read_bytes()
    assert "exists already" in refusal(import_token, "--generate", key)
    assert "exists already" in refusal(import_token, "--key", key, "--output", key)
    assert "cannot be written" in refusal(import_token, "--generate", tmp_path / "nowhere" / "key")
    assert key.read_bytes() == before


def test_a_wrong_import_token(private: rsa.RSAPrivateKey, key: Path, tmp_path: Path) -> None:
    public = private.public_key()
    small = rsa.generate_private_key(65_537, 2_048).public_key()
    not_fetched = "GET /import_token"
    cases = [
        (b"", not_fetched),
        (b"not JSON", not_fetched),
        (b"[]", not_fetched),
        (b'"a text"', not_fetched),
        (b"\xff\xfe", not_fetched),
        (answer_of(public, payload=None), not_fetched),
        (answer_of(public, nonce=None), not_fetched),
        (answer_of(public, nonce=7), not_fetched),
        (answer_of(public, nonce="#"), not_fetched),
        (answer_of(public, payload="not base64"), not_fetched),
        (answer_of(public, payload=""), "no public key"),
        (answer_of(public, payload=base64.b64encode(b"not PEM").decode()), "no public key"),
        (answer_of(small), "no RSA-4096 key"),
        (answer_of(ec.generate_private_key(ec.SECP256R1()).public_key()), "no RSA-4096 key"),
    ]
    for answer, says in cases:
        assert says in refusal("--key", key, stdin=answer), answer
    # A key is made only when it can be wrapped.
    made = tmp_path / "made"
    refusal("--generate", made, stdin=b"not JSON")
    refusal("--generate", made, stdin=answer_of(small))
    assert not made.exists()
    assert "cannot be read" in refusal(tmp_path / "nothing", "--key", key)


@pytest.mark.parametrize("length", [0, 1, 12, 15, 17, 31, 33, 64])
def test_a_key_of_another_length(import_token: Path, tmp_path: Path, length: int) -> None:
    key = write(tmp_path / "key", b"\xff" * length)
    assert f"has {length} bytes" in refusal(import_token, "--key", key)


@pytest.mark.parametrize(
    "text",
    [
        bytes(range(16)).hex().encode(),
        bytes(range(0xA0, 0xA8)).hex().upper().encode(),
        base64.b64encode(bytes(range(16))),
        base64.b64encode(bytes(range(32))) + b"\n",
        b"0" * 32,
    ],
)
def test_a_key_that_is_written_as_text(import_token: Path, tmp_path: Path, text: bytes) -> None:
    """Some have a length that AES has, and half of the strength that their owner thinks."""
    key = write(tmp_path / "key", text)
    says = refusal(import_token, "--key", key)
    assert "holds text" in says
    assert text.decode().strip() not in says


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_key_that_others_can_read(import_token: Path, key: Path, mode: int) -> None:
    key.chmod(mode)
    assert "chmod 600" in refusal(import_token, "--key", key)


def test_a_refusal_is_one_line(import_token: Path, tmp_path: Path) -> None:
    done = prepare(import_token, "--key", tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"hsmkms: The key file")
    assert done.stderr.count(b"\n") == 1


def test_a_key_that_is_not_there(import_token: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        assert "cannot be read" in refusal(import_token, "--key", path)


@pytest.mark.parametrize("options", [(), ("--key", "a", "--generate", "b")])
def test_neither_or_both(import_token: Path, options: tuple[str, ...]) -> None:
    done = prepare(import_token, *options)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--generate" in done.stderr
