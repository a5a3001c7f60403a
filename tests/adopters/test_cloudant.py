"""Cloudant's protocol on an encrypted volume: IBM's own SDK against PouchDB Server, under keys that were made in the
token and that their owner brought, in a key instance of its own.

PouchDB Server has no `/_up` and gives attachments back compressed: documents and views are what is looked at.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from ibm_cloud_sdk_core import ApiException
from ibm_cloud_sdk_core.authenticators import NoAuthAuthenticator
from ibmcloudant.cloudant_v1 import BulkDocs, CloudantV1, DesignDocument, DesignDocumentViewsMapReduce, Document

from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.store import engine
from tests.api.backstage import age
from tests.support.adopter import Adopter
from tests.support.connections import write_connection
from tests.support.deployment import Service, create_key
from tests.support.foreign_clients import output_of
from tests.support.iam import Iam, key_client
from tests.support.ports import free_port
from tests.support.volumes import WAIT_S, Run, act, holds, make, place, require_fuse

MARKER = "a-document-that-must-not-be-found"
MINUTE = timedelta(minutes=1)
SOURCES = Path(__file__).with_name("couch")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PouchDB Server, as the npm registry serves it; its scripts are not run."""
    installed = tmp_path_factory.mktemp("couch")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(SOURCES / name, installed)
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    output_of(["npm", "ci", *quiet], {"npm_config_update_notifier": "false"}, installed)
    return installed / "node_modules" / ".bin" / "pouchdb-server"


@pytest.fixture
def directory() -> Iterator[Path]:
    require_fuse()
    with place() as directory:
        yield directory


@dataclass(frozen=True)
class Place:
    """A key instance, its manager, and an instance of Cloudant that may read its keys."""

    instance_id: str
    admin: httpx.Client
    cloudant: Adopter


@pytest.fixture
def instance(iam: Iam, service: Service) -> Iterator[Place]:
    instance_id = iam.instance()
    cloudant = Adopter(iam, "cloudantnosqldb", "local", instance_id)
    with key_client(service, iam.token, instance_id) as admin:
        yield Place(instance_id, admin, cloudant)
    cloudant.http.close()


def answers(client: CloudantV1) -> bool:
    try:
        client.get_server_information()
    except (ApiException, OSError):
        # The HTTP library's own errors are OSErrors.
        return False
    return True


@pytest.mark.parametrize("origin", ["imported", "created"])
def test_documents_and_views_follow_the_key(
    origin: str,
    instance: Place,
    service: Service,
    database_of: engine.Database,
    directory: Path,
    tmp_path: Path,
    program: Path,
) -> None:
    admin, material = instance.admin, {"payload": _material()} if origin == "imported" else {}
    key, port = create_key(admin, **material), free_port()
    connection = write_connection(tmp_path, service, instance.cloudant.who.api_key, instance_id=instance.instance_id)
    volume = make(directory / "couch", connection, key, instance.cloudant.crn("couch"))
    assert admin.delete(f"/keys/{key}").status_code == 409  # The registration is in the way.
    client = CloudantV1(authenticator=NoAuthAuthenticator())
    client.set_service_url(f"http://127.0.0.1:{port}")
    # The server writes its log, its settings and, below `db`, everything else where it stands: on the volume.
    command = [str(program), "--dir", "db", "--config", "config.json", "--host", "127.0.0.1", "--port", str(port)]
    with Run(volume, *command) as run:
        run.wait_until("serving", lambda: answers(client))
        _fill(client)
        _require_everything(client)
        assert holds(volume.mount, MARKER.encode())
        assert not holds(volume.cipher, MARKER.encode())
        before = WrappedDekFile.read(volume.dek_file)
        fresh = {"payload": _material()} if material else None
        rotated = admin.post(f"/keys/{key}/actions/rotate", json=fresh)
        assert rotated.status_code == 204, rotated.text
        run.wait_until("rewrapped", lambda: WrappedDekFile.read(volume.dek_file).ciphertext != before.ciphertext)
        _require_everything(client)
        act(admin, key, "disable")
        run.wait_until("locked", lambda: not run.is_open and not answers(client))
        age(database_of, key, disabled_at=MINUTE)
        act(admin, key, "enable")
        run.wait_until("serving again", lambda: answers(client))
        _require_everything(client)
        act(admin, key, "delete")
        run.wait_until("locked for good", lambda: not run.is_open and not answers(client))
    with Run(volume, *command) as refused:
        assert refused.process.wait(WAIT_S) == 1
    assert "deleted" in refused.log.read_text().splitlines()[-1]


def _material() -> str:
    """A key that its owner brings."""
    return base64.b64encode(os.urandom(32)).decode()


def _fill(client: CloudantV1) -> None:
    client.put_database(db="bank")
    client.post_document(db="bank", document=_document("first", MARKER, 100))
    more = [_document(f"more-{number}", f"{MARKER}-{number}", number) for number in range(200)]
    client.post_bulk_docs(db="bank", bulk_docs=BulkDocs(docs=more))
    view = DesignDocumentViewsMapReduce(map="function (doc) { emit(doc._id, doc.cents); }", reduce="_sum")
    client.put_design_document(db="bank", ddoc="sums", design_document=DesignDocument(views={"cents": view}))


def _document(name: str, holder: str, cents: int) -> Document:
    return Document.from_dict({"_id": name, "holder": holder, "cents": cents})


def _require_everything(client: CloudantV1) -> None:
    assert client.get_document(db="bank", doc_id="first").get_result()["holder"] == MARKER
    summed = client.post_view(db="bank", ddoc="sums", view="cents", reduce=True).get_result()
    assert summed["rows"][0]["value"] == 100 + sum(range(200))
    assert client.get_database_information(db="bank").get_result()["doc_count"] == 202
