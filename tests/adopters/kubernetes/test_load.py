"""A large cluster's restart: 10,000 DEKs to decrypt. And the plugin's memory afterwards."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from hsmkms.adopters.client import KeyServiceClient
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core.dek_file import aad_of
from tests.adopters.kubernetes.conftest import Cluster
from tests.support.kms_plugin import Encrypted, Kms, KmsPlugin

pytestmark = pytest.mark.alone

DECRYPTS = 10_000
AT_ONCE = 32
"""An API server decrypts one after another for each list that it fills, and fills several lists at once."""
GROWTH_KIB = 16 * 1024


@pytest.fixture(scope="module")
def plugin(quiet_cluster: Cluster) -> KmsPlugin:
    return quiet_cluster.start()


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


def test_ten_thousand_decrypts(kms: Kms, quiet_cluster: Cluster) -> None:
    deks = [os.urandom(32) for _ in range(100)]
    sealed = [kms.encrypt(dek) for dek in deks]

    def decrypt(number: int) -> None:
        assert kms.decrypt(sealed[number % 100]) == deks[number % 100]

    decrypts_s, took = rate(decrypt, DECRYPTS)
    unwraps_s = _service_rate(quiet_cluster, sealed)
    p99 = took[int(len(took) * 0.99)]
    print(
        f"{DECRYPTS} Decrypts, {decrypts_s:.0f}/s, p50 {took[len(took) // 2] * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms: "
        f"{decrypts_s / unwraps_s:.2f} of the service's own {unwraps_s:.0f} unwraps/s"
    )
    assert p99 < 1


def _service_rate(cluster: Cluster, sealed: list[Encrypted]) -> float:
    """Unwraps a second of the service itself, by its own HTTP interface."""
    connection = Connection.read(cluster.connection)
    bodies = []
    for one in sealed:
        name = next(iter(one.annotations.values())).decode()
        aad = aad_of("kubernetes", cluster.crn, f"{cluster.key}/{name}")
        bodies.append({"ciphertext": one.ciphertext.decode(), "aad": list(aad)})
    with KeyServiceClient(connection) as client:
        client.unwrap(cluster.key, sealed[0].ciphertext.decode(), bodies[0]["aad"])
    local = threading.local()

    def unwrap(number: int) -> None:
        if not hasattr(local, "http"):
            local.http = httpx.Client(base_url=cluster.source.http.base_url, headers=cluster.source.http.headers)
        answer = local.http.post(f"/keys/{cluster.key}/actions/unwrap", json=bodies[number % len(bodies)])
        assert answer.status_code == 200, answer.text

    return rate(unwrap, 2_000)[0]


def test_memory_stays_flat(kms: Kms, plugin: KmsPlugin) -> None:
    _assert_flat(kms, plugin, 4_000)


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
