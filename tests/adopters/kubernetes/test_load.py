"""A large cluster's restart: 10,000 DEKs to decrypt. And the plugin's memory afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hsmkms.adopters.core.dek_file import aad_of
from tests.adopters.kubernetes.conftest import Cluster
from tests.support.kms_plugin import Encrypted, Kms, KmsPlugin

pytestmark = pytest.mark.alone

DECRYPTS = 10_000
AT_ONCE = 32
"""An API server decrypts one after another for each list that it fills, and fills several lists at once."""
GROWTH_KIB = 8 * 1024


@pytest.fixture(scope="module")
def plugin(quiet_cluster: Cluster) -> KmsPlugin:
    crn = quiet_cluster.admin.get(f"/keys/{quiet_cluster.key}/metadata").json()["resources"][0]["crn"]
    return quiet_cluster.stack.enter_context(quiet_cluster.plugin(key=crn))


@pytest.fixture(scope="module")
def kms(plugin: KmsPlugin) -> Iterator[Kms]:
    with plugin.client() as client:
        yield client


def rate(act: Callable[[int], object], calls: int) -> tuple[float, list[float]]:
    """Calls a second by AT_ONCE threads, and how long each took, in order of length."""
    took: list[float] = []

    def timed(number: int) -> None:
        began = time.perf_counter()
        act(number)
        took.append(time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(timed, range(calls)):
            pass
    return calls / (time.perf_counter() - began), sorted(took)


@pytest.mark.slow
def test_ten_thousand_decrypts(
    kms: Kms, quiet_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deks = [os.urandom(32) for _ in range(100)]
    sealed = [kms.encrypt(dek) for dek in deks]

    def decrypt(number: int) -> None:
        assert kms.decrypt(sealed[number % 100]) == deks[number % 100]

    decrypts_s, took = rate(decrypt, DECRYPTS)
    unwraps_s = _service_rate(quiet_cluster, sealed[0], tmp_path)
    p99 = took[int(len(took) * 0.99)]
    with capsys.disabled():
        print(
            f"\n{DECRYPTS} Decrypts, {decrypts_s:.0f}/s, p50 {took[len(took) // 2] * 1000:.0f} ms, "
            f"p99 {p99 * 1000:.0f} ms: {decrypts_s / unwraps_s:.2f} of the service's own {unwraps_s:.0f} unwraps/s"
        )
    assert p99 < 1


def _service_rate(cluster: Cluster, sealed: Encrypted, directory: Path) -> float:
    """Unwraps a second that the service itself does over HTTP, asked by a client that costs next to nothing."""
    name = next(iter(sealed.annotations.values())).decode()
    aad = aad_of("kubernetes", cluster.crn, f"{cluster.key}/{name}")
    script = directory / "unwrap.lua"
    lines = [
        'wrk.method = "POST"',
        f"wrk.body = [[{json.dumps({'ciphertext': sealed.ciphertext.decode(), 'aad': aad})}]]",
    ]
    lines += [
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in cluster.source.http.headers.items()
    ]
    script.write_text("\n".join(lines))
    url = f"{cluster.service.url}/api/v2/keys/{cluster.key}/actions/unwrap"
    command = ["wrk", "-t1", f"-c{AT_ONCE}", "-d4s", "-s", str(script), url]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert "Non-2xx" not in done.stdout, done.stdout
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", done.stdout)[0])


def test_memory_stays_flat(kms: Kms, plugin: KmsPlugin) -> None:
    _assert_flat(kms, plugin, 2_000)


@pytest.mark.slow
def test_memory_stays_flat_over_100_000_calls(kms: Kms, plugin: KmsPlugin) -> None:
    _assert_flat(kms, plugin, 100_000)


def _assert_flat(kms: Kms, plugin: KmsPlugin, calls: int) -> None:
    """Over calls of every kind, refused ones too, after a first tenth that fills pools."""

    def call(number: int) -> None:
        dek = number.to_bytes(32, "big")
        match number % 4:
            case 0:
                kms.status()
            case 1:
                kms.encrypt(dek)
            case 2:
                assert kms.decrypt(kms.encrypt(dek)) == dek
            case _:
                with pytest.raises(Exception, match="INVALID_ARGUMENT"):
                    kms.decrypt(Encrypted(b"no ciphertext", f"{'0' * 8}-0000-0000-0000-{'0' * 12}:", {}))

    rate(call, calls // 10)
    before = plugin.memory_kib()
    rate(call, calls)
    after = plugin.memory_kib()
    print(f"{calls} calls: {before} KiB, then {after} KiB")
    assert after - before < GROWTH_KIB
