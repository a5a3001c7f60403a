"""The image, built from packages on a Debian of its own and run as docs/operations.md says."""

from __future__ import annotations

import os
import resource
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import Authority
from tests.support.deployment import ROOT, create_key
from tests.support.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

BASE = "localhost/debian-of-the-test"
IMAGE = "localhost/hsmkms-of-the-test"
ADDED_MB = 300
READY_S = 120


class Podman:
    """Podman with storage of its own."""

    def __init__(self, directory: Path) -> None:
        self._options = [f"--root={directory / 'storage'}", f"--runroot={directory / 'run'}"]
        if shutil.which("runc") is not None:
            # crun takes no machine that has both versions of cgroups mounted.
            self._options.append("--runtime=runc")
        # Its default limits are above those that root has in some containers.
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 16_384)
        self.limits = [f"--ulimit=nofile={files}:{files}", "--ulimit=nproc=4096:4096"]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["podman", *self._options, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=1_200,
        )
        assert done.returncode == 0, (arguments, done.returncode, done.stdout[-2_000:], done.stderr[-2_000:])
        return done.stdout.strip()


def _trusted(directory: Path) -> list[str]:
    """Mounts that let the build reach packages as pip reaches them here, where it needs a CA of its own for that."""
    ca = os.environ.get("PIP_CERT")
    if ca is None:
        return []
    settings = directory / "pip.conf"
    settings.write_text("[global]\ncert = /run/ca.pem\ntimeout = 180\n")
    return [f"--volume={settings}:/etc/pip.conf:ro", f"--volume={ca}:/run/ca.pem:ro"]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """With the image built."""
    missing = [program for program in ("podman", "mmdebstrap") if shutil.which(program) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"to build the image takes root, podman and mmdebstrap; missing: {missing or 'root'}")
    directory = tmp_path_factory.mktemp("podman")
    podman = Podman(directory)
    base = directory / "base.tar"
    subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", str(base)], check=True, timeout=900)
    try:
        podman("import", str(base), BASE)
        base.unlink()
        build = ["build", "--isolation=chroot", "--pull-never", f"--build-arg=BASE={BASE}", *_trusted(directory)]
        build += [f"--file={ROOT / 'packaging' / 'Containerfile'}", f"--ignorefile={ROOT / '.containerignore'}"]
        podman(*build, f"--tag={IMAGE}", str(ROOT))
        yield podman
    finally:
        podman("rm", "--all", "--force")
        podman("rmi", "--all", "--force")
        podman("volume", "rm", "--all", "--force")
        shutil.rmtree(directory, ignore_errors=True)


def test_the_image_holds_the_program_and_nothing_else(podman: Podman) -> None:
    size = [int(podman("image", "inspect", "--format={{.Size}}", name)) for name in (IMAGE, BASE)]
    assert size[0] - size[1] < ADDED_MB * 1_000_000
    root = Path(podman("image", "mount", IMAGE))
    try:
        assert not any((root / "var/lib/hsmkms").iterdir())
        assert not (root / "src").exists()
        packages = {one.name for one in (root / "opt/hsmkms/lib/python3.11/site-packages").iterdir()}
        assert packages.isdisjoint({"pip", "setuptools", "hatchling", "tests"})
        assert not list((root / "opt").rglob(".git"))
        assert not list((root / "var/cache/apt/archives").glob("*.deb"))
    finally:
        podman("image", "umount", IMAGE)


def test_it_serves_from_its_volume_and_comes_back_with_its_keys(podman: Podman, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    server = authority.server()
    port = free_port()
    for name, source in (("tls.crt", server.certificate), ("tls.key", server.key)):
        shutil.copy(source, tmp_path / name)
        os.chown(tmp_path / name, 10_001, 10_001)
        (tmp_path / name).chmod(0o600)
    tmp_path.chmod(0o711)
    run = ["run", *podman.limits, "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]
    run += [
        "--ulimit=core=0",
        "--stop-timeout=30",
        f"--publish=127.0.0.1:{port}:8800",
        "--volume=state:/var/lib/hsmkms",
    ]
    run += [f"--volume={tmp_path}:/etc/hsmkms:ro", f"--env=HSMKMS_PUBLIC_URL=https://localhost:{port}"]
    run += ["--env=HSMKMS_HOST=0.0.0.0", "--env=HSMKMS_TLS_CERT=/etc/hsmkms/tls.crt"]
    run += ["--env=HSMKMS_TLS_KEY=/etc/hsmkms/tls.key", "--name=kms"]

    podman(*run, "--rm", IMAGE, "init", "--softhsm", "/usr/share/hsmkms/softhsm2.conf.template")
    state = Path(podman("volume", "inspect", "--format={{.Mountpoint}}", "state"))
    lines = (state / "client.env").read_text().splitlines()
    credentials = dict(line.removeprefix("IBM_KEY_PROTECT_API_").split("=", 1) for line in lines)
    assert credentials["URL"] == f"https://localhost:{port}"

    podman(*run, "--detach", IMAGE)
    with _client(podman, credentials, authority) as client:
        key = create_key(client)
        wrapped = client.post(f"/keys/{key}/actions/wrap").json()
    status = podman("exec", "kms", "cat", "/proc/1/status")
    for line in ("Uid:\t10001\t10001", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"):
        assert line in status
    podman("exec", "kms", "/opt/hsmkms/bin/hsmkms", "doctor")
    podman("stop", "kms")
    assert podman("inspect", "--format={{.State.ExitCode}}", "kms") == "0"
    podman("rm", "kms")

    podman(*run, "--detach", "--env=HSMKMS_WORKERS=2", IMAGE)
    with _client(podman, credentials, authority) as client:
        opened = client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]}).json()
        assert opened["plaintext"] == wrapped["plaintext"]
    podman("stop", "kms")
    assert podman("inspect", "--format={{.State.ExitCode}}", "kms") == "0"
    podman("rm", "kms")
    logs = podman(*run, "--rm", IMAGE, "audit", "verify").splitlines()
    assert all("closed and signed" in line for line in logs), logs


def _client(podman: Podman, credentials: dict[str, str], authority: Authority) -> httpx.Client:
    """Of the administrator, once the service is ready."""
    url, verify = credentials["URL"], ssl.create_default_context(cafile=authority.file)
    deadline = time.monotonic() + READY_S
    while True:
        try:
            if httpx.get(f"{url}/readyz", verify=verify, timeout=10).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, podman("logs", "kms")
        time.sleep(0.2)
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": credentials["APIKEY"]}
    token = httpx.post(f"{url}/identity/token", data=form, verify=verify).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}", "Bluemix-Instance": credentials["BLUEMIX_INSTANCE"]}
    return httpx.Client(base_url=f"{url}/api/v2", headers=headers, verify=verify, timeout=60)
