"""What a control-plane node needs beside the plugin: files for kube-apiserver, and for what starts the plugin."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsmkms.adopters.core import atomic
from hsmkms.adopters.kubernetes.plugin import PluginSettings
from hsmkms.adopters.kubernetes.refusals import PluginRefused
from hsmkms.adopters.kubernetes.socket_file import SocketFile

ENCRYPTION: Final = Path("/etc/kubernetes/hsmkms-encryption.yaml")
UNIT: Final = Path("/etc/systemd/system/hsmkms-kubernetes.service")
POD: Final = Path("/etc/kubernetes/manifests/hsmkms-kubernetes.yaml")
PROVIDER: Final = "hsmkms"
NEXT: Final = (
    f"Start the plugin, then give kube-apiserver --encryption-provider-config={ENCRYPTION}, and let it see that file "
    "and the directory of the socket. See docs/kubernetes.md."
)


@dataclass(frozen=True)
class NodeFile:
    """A file and where it goes."""

    path: Path
    mode: int
    content: str

    def described(self) -> str:
        """Content with its place and mode as a comment in front."""
        return f"# {self.path} (mode {self.mode:04o}, root)\n{self.content}"

    def write(self, root: Path) -> Path:
        """Write it below a directory: where it is then. Raises PluginRefused: what is there and differs is
        somebody's."""
        path = root / self.path.relative_to("/")
        try:
            if path.exists() and path.read_text() != self.content:
                raise PluginRefused(f"{path} exists and is another. Compare it with what --print prints.")
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.replace(path, self.content.encode(), self.mode)
        except OSError as error:
            raise PluginRefused(f"{path} cannot be written: {error.strerror}.") from error
        return path


def files(settings: PluginSettings, image: str | None) -> list[NodeFile]:
    """For a systemd unit or, with an image, a static pod. Raises PluginRefused."""
    socket = SocketFile(settings.socket, settings.owner)
    started = NodeFile(UNIT, 0o644, _unit(settings, socket)) if image is None else _pod(settings, socket, image)
    return [NodeFile(ENCRYPTION, 0o600, _encryption(settings, socket)), started]


def _encryption(settings: PluginSettings, socket: SocketFile) -> str:
    version = "v1" if settings.v1beta1 else "v2"
    # v1 asks the plugin for every object that is not among the last so many.
    cache = "          cachesize: 1000\n" if settings.v1beta1 else ""
    return f"""apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources:
      - secrets
    providers:
      - kms:
          apiVersion: {version}
          name: {PROVIDER}
          endpoint: {socket.address}
          timeout: 3s
{cache}      # What was written before can still be read. Take this out once all secrets are rewritten.
      - identity: {{}}
"""


def _arguments(settings: PluginSettings, socket: SocketFile) -> list[str]:
    words = [
        "kubernetes-plugin",
        f"--key={settings.key}",
        f"--crn={settings.cluster_crn}",
        f"--connection={settings.connection}",
        f"--socket={socket.path}",
    ]
    if settings.owner is not None:
        words.append(f"--owner={settings.owner}")
    if settings.cache_s:
        words.append(f"--cache-s={settings.cache_s:g}")
    if settings.metrics_port is not None:
        words.append(f"--metrics-port={settings.metrics_port}")
    for name in ("v1beta1", "prevent_deletion"):
        if getattr(settings, name):
            words.append(f"--{name.replace('_', '-')}")
    return words


def _unit(settings: PluginSettings, socket: SocketFile) -> str:
    program = Path(sys.executable).with_name("hsmkms")
    words = [shlex.quote(word) for word in (str(program), *_arguments(settings, socket))]
    # Two characters mean something to systemd, also between quotes.
    command = " \\\n    ".join(word.replace("%", "%%").replace("$", "$$") for word in words)
    return f"""[Unit]
Description=KMS plugin of kube-apiserver ({PROVIDER})
After=network-online.target
Wants=network-online.target
Before=kubelet.service

[Service]
ExecStart={command}
# The plugin makes the socket, mode 0600, and its directory, mode 0700, by itself.
UMask=0077
Restart=always
RestartSec=1
TimeoutStopSec=15
LimitCORE=0
LimitMEMLOCK=infinity
NoNewPrivileges=yes
PrivateTmp=yes
ProtectHome=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6

[Install]
WantedBy=multi-user.target
"""


def _pod(settings: PluginSettings, socket: SocketFile, image: str) -> NodeFile:
    mounts = {"socket": socket.path.parent, "connection": settings.connection.parent}
    container: dict[str, object] = {
        "name": "plugin",
        "image": image,
        "command": ["hsmkms"],
        "args": _arguments(settings, socket),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            # Decrypted DEKs stay out of swap.
            "capabilities": {"add": ["IPC_LOCK"]},
        },
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "volumeMounts": [
            {"name": name, "mountPath": str(path), "readOnly": name == "connection"} for name, path in mounts.items()
        ],
    }
    if settings.metrics_port is not None:
        container["livenessProbe"] = {
            "httpGet": {"host": "127.0.0.1", "port": settings.metrics_port, "path": "/livez"},
            "periodSeconds": 10,
            "failureThreshold": 3,
        }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "hsmkms-kubernetes",
            "namespace": "kube-system",
            "labels": {"component": "hsmkms-kubernetes"},
        },
        "spec": {
            "priorityClassName": "system-node-critical",
            # It has to run before there is a network of pods, and its metrics stay on the node.
            "hostNetwork": True,
            "containers": [container],
            "volumes": [
                {
                    "name": name,
                    "hostPath": {"path": str(path), "type": "DirectoryOrCreate" if name == "socket" else "Directory"},
                }
                for name, path in mounts.items()
            ],
        },
    }
    # JSON is YAML.
    return NodeFile(POD, 0o600, json.dumps(pod, indent=2) + "\n")
