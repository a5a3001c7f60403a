"""How the plugin starts: whose socket it is, what it refuses in one line, what `install` writes, what it shows."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from tests.adopters.kubernetes.conftest import Cluster
from tests.support.kms_plugin import eventually
from tests.support.ports import free_port

DEK = bytes(range(32))


def test_one_plugin_a_socket_for_its_owner_only(quiet_cluster: Cluster) -> None:
    os.umask(0)
    plugin = quiet_cluster.start()
    status = plugin.socket.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.getuid())
    said = plugin.refusal()
    assert f"Another plugin, process {plugin.process.pid}, serves {plugin.socket}" in said
    assert "Traceback" not in said
    with plugin.client() as kms:
        sealed = kms.encrypt(DEK)
        # What a killed one leaves is taken away by the next, which opens what the other encrypted.
        plugin.kill()
        assert plugin.socket.exists()
        plugin.start()
        assert kms.decrypt(sealed) == DEK
    # Told to end it takes its socket away.
    plugin.process.send_signal(signal.SIGTERM)
    assert plugin.process.wait(20) == 0
    assert not plugin.socket.exists()
    names = {path.name for path in plugin.socket.parent.iterdir()}
    assert names == {"kms.sock.lock", "kms.sock.key-id", "kms.sock.log"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_socket_is_given_to_its_owner(quiet_cluster: Cluster) -> None:
    plugin = quiet_cluster.plugin("--owner=nobody")
    with plugin:
        nobody = pwd.getpwnam("nobody").pw_uid
        assert {plugin.socket.stat().st_uid, plugin.socket.parent.stat().st_uid} == {nobody}
        assert stat.S_IMODE(plugin.socket.stat().st_mode) == 0o600
    strange = quiet_cluster.plugin("--owner=nobody-knows")
    assert "nobody-knows" in strange.refusal()
    assert not strange.socket.exists()


def test_what_is_not_its_own_it_leaves_alone(quiet_cluster: Cluster) -> None:
    file = quiet_cluster.plugin()
    file.socket.write_text("precious")
    assert "is no socket" in file.refusal()
    assert file.socket.read_text() == "precious"
    served = quiet_cluster.plugin()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(served.socket))
        other.listen()
        assert "Another program serves" in served.refusal()
        assert served.socket.exists()
    shared = quiet_cluster.plugin()
    shared.socket.parent.chmod(0o777)
    assert "chmod go-w" in shared.refusal()


def test_a_path_has_107_bytes_at_most(quiet_cluster: Cluster) -> None:
    plugin = quiet_cluster.plugin()
    room = 107 - len(os.fsencode(plugin.socket.parent)) - 1
    plugin.socket = plugin.socket.with_name("s" * (room + 1))
    plugin.command[2] = f"--socket={plugin.socket}"
    assert "at most 107 bytes" in plugin.refusal()
    # Relative paths count as what they stand for.
    plugin.command[2] = f"--socket={os.path.relpath(plugin.socket)}"
    assert "at most 107 bytes" in plugin.refusal()
    plugin.socket = plugin.socket.with_name("s" * room)
    plugin.command[2] = f"--socket={plugin.socket}"
    with plugin, plugin.client() as kms:
        assert kms.status()[0] == "ok"


def test_what_it_is_started_with_is_checked(quiet_cluster: Cluster, tmp_path: Path) -> None:
    assert "not by an alias" in quiet_cluster.plugin(key="banks-key").refusal()
    assert "cannot be read" in quiet_cluster.plugin(connection=tmp_path / "none.toml").refusal()
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert "cannot be bound" in quiet_cluster.plugin(f"--metrics-port={port}").refusal()
    bare = quiet_cluster.plugin()
    bare.command = bare.command[:3]
    assert "--key, --crn and --connection" in " ".join(bare.refusal().replace("│", " ").split())


def test_metrics_and_health_are_on_loopback(quiet_cluster: Cluster) -> None:
    port = free_port()
    plugin = quiet_cluster.start(f"--metrics-port={port}")
    with plugin.client() as kms, httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        sealed = kms.encrypt(DEK)
        assert kms.decrypt(sealed) == DEK
        assert (http.get("/healthz").text, http.get("/livez").text) == ("ok\n", "ok\n")
        assert http.get("/").status_code == 404
        text = http.get("/metrics").text
        for line in (
            'hsmkms_kubernetes_calls_total{code="OK",method="v2.Encrypt"} 1.0',
            'hsmkms_kubernetes_root_key{condition="healthy"} 1.0',
            'hsmkms_kubernetes_root_key{condition="refused"} 0.0',
            f'hsmkms_kubernetes_key_id{{key_id="{sealed.key_id}"}} 1.0',
            "hsmkms_kubernetes_registered 1.0",
        ):
            assert line in text
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert [line[1] for line in listening if line[1].endswith(f":{port:04X}") and line[3] == "0A"] == [
        f"0100007F:{port:04X}"
    ]


def test_a_cluster_that_cannot_be_registered_is_served_and_said(quiet_cluster: Cluster) -> None:
    port = free_port()
    plugin = quiet_cluster.plugin(f"--metrics-port={port}")
    foreign = quiet_cluster.crn.replace(quiet_cluster.source.prefix.rsplit(":", 1)[1], "another-cluster")
    plugin.command[4] = f"--crn={foreign}"
    with plugin, plugin.client() as kms:
        assert kms.decrypt(kms.encrypt(DEK)) == DEK
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz")
        assert (answer.status_code, "not registered" in answer.text) == (503, True)
        eventually(lambda: "the cluster is not registered with its root key" in plugin.log.read_text(), 20)


def test_install_prints_and_writes(quiet_cluster: Cluster, tmp_path: Path) -> None:
    run = quiet_cluster.service.state.run
    words = ["kubernetes-plugin", "install", "--print", f"--key={quiet_cluster.key}", f"--crn={quiet_cluster.crn}"]
    words += [f"--connection={quiet_cluster.connection}", "--owner=kube", "--prevent-deletion"]
    printed = run(*words).stdout.decode()
    configuration, unit = printed.split("\n# /etc/systemd/system/hsmkms-kubernetes.service (mode 0644, root)\n")
    provider, identity = yaml.safe_load(configuration)["resources"][0]["providers"]
    assert provider["kms"] == {
        "apiVersion": "v2",
        "name": "hsmkms",
        "endpoint": "unix:///run/hsmkms-kms/kms.sock",
        "timeout": "3s",
    }
    assert identity == {"identity": {}}
    started = unit.split("ExecStart=")[1].split("\nUMask")[0].replace("\\\n", "").split()
    assert Path(started[0]).name == "hsmkms"
    if shutil.which("systemd-analyze") is not None:
        file = tmp_path / "hsmkms-kubernetes.service"
        file.write_text(unit)
        file.chmod(0o644)
        done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
        assert [line for line in done.stderr.splitlines() if "hsmkms" in line] == []
    expected = [f"--key={quiet_cluster.key}", f"--crn={quiet_cluster.crn}", f"--connection={quiet_cluster.connection}"]
    expected += ["--socket=/run/hsmkms-kms/kms.sock", "--owner=kube", "--metrics-port=9189", "--prevent-deletion"]
    assert started[2 : 2 + len(expected)] == expected

    printed = run(*words, "--image=registry.internal/hsmkms:1", "--v1beta1").stdout.decode()
    pod = yaml.safe_load(printed.split("\n# /etc/kubernetes/manifests/hsmkms-kubernetes.yaml (mode 0600, root)\n")[1])
    assert pod["spec"]["hostNetwork"]
    container = pod["spec"]["containers"][0]
    assert container["args"][1:] == [*expected[:-1], "--v1beta1", "--prevent-deletion"]
    assert container["livenessProbe"]["httpGet"] == {"host": "127.0.0.1", "port": 9189, "path": "/livez"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {
        "/run/hsmkms-kms",
        str(quiet_cluster.connection.parent),
    }
    assert "--owner=kube" in container["args"]

    root = tmp_path / "image"
    words[2] = f"--root={root}"
    assert run(*words).returncode == run(*words).returncode == 0
    written = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    assert set(written) == {"etc/kubernetes/hsmkms-encryption.yaml", "etc/systemd/system/hsmkms-kubernetes.service"}
    assert stat.S_IMODE(written["etc/kubernetes/hsmkms-encryption.yaml"].stat().st_mode) == 0o600
    assert written["etc/systemd/system/hsmkms-kubernetes.service"].read_text() == unit.removesuffix("\n")
    changed = written["etc/kubernetes/hsmkms-encryption.yaml"]
    changed.write_text("somebody's")
    assert b"exists and is another" in run(*words).stderr
    assert changed.read_text() == "somebody's"


def test_check_asks_as_the_api_server_does(quiet_cluster: Cluster) -> None:
    plugin, run = quiet_cluster.plugin(), quiet_cluster.service.state.run
    asking = ("kubernetes-plugin", "check", f"--socket={plugin.socket}")
    with plugin:
        done = run(*asking)
        assert done.stdout.decode() == f"ok, encrypting under {quiet_cluster.key}:{quiet_cluster.version}\n"
    done = run(*asking)
    assert (done.returncode, b"UNAVAILABLE" in done.stderr, b"Traceback" in done.stderr) == (1, True, False)
