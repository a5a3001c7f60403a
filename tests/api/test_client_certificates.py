"""Mutual TLS: a client certificate under the operator's CA is a service id, without any token."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Iterator

import httpx
import pytest
from cryptography import x509

from hsmkms.domain.access import Role
from tests.api.refusals import require_refused
from tests.support.certificates import Authority, Issued
from tests.support.deployment import Service, State, create_body
from tests.support.iam import Iam, Somebody, log_in


class Protected:
    """A service over TLS that asks for client certificates."""

    def __init__(self, service: Service, iam: Iam, ours: Authority, other: Authority) -> None:
        self.service, self.iam, self.ours, self.other = service, iam, ours, other

    def client(self, issued: Issued | None, **headers: str) -> httpx.Client:
        """A client with this certificate and no token."""
        context = ssl.create_default_context(cafile=str(self.ours.file))
        if issued is not None:
            context.load_cert_chain(issued.certificate, issued.key)
        instance = {"Bluemix-Instance": self.service.state.instance_id}
        return httpx.Client(base_url=f"{self.service.url}/api/v2", headers={**instance, **headers}, verify=context)

    def map(self, somebody: Somebody, claim: str, value: str) -> str:
        """Map a claim of certificates to somebody; the login's id."""
        done = self.service.state.run("iam", "logins", "add", somebody.iam_id, claim, value)
        assert done.returncode == 0, done.stderr
        log_in(self.service, self.service.state.api_key)
        return done.stdout.decode().strip()


@pytest.fixture(scope="module")
def protected(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protected]:
    place = tmp_path_factory.mktemp("mtls")
    ours, other = Authority(place, "ours"), Authority(place, "other")
    server = ours.server()
    files = {
        "HSMKMS_TLS_CERT": str(server.certificate),
        "HSMKMS_TLS_KEY": str(server.key),
        "HSMKMS_TLS_CLIENT_CA": str(ours.file),
    }
    state = seed_state.copy_to(place / "state")
    with Service(state, workers=1, tls_ca=str(ours.file), **files) as service, Iam(service) as iam:
        yield Protected(service, iam, ours, other)


@pytest.mark.parametrize("claim", ["sha256", "san:dns", "san:uri"])
def test_a_mapped_certificate_has_the_rights_of_its_service_id(protected: Protected, claim: str) -> None:
    name, uri = f"{claim[-3:]}.bank.example", f"spiffe://bank.example/{claim[-3:]}"
    issued = protected.ours.issue(f"holder-{claim[-3:]}", [x509.DNSName(name), x509.UniformResourceIdentifier(uri)])
    somebody = protected.iam.somebody()
    value = {"sha256": issued.sha256, "san:dns": name, "san:uri": uri}[claim]
    login = protected.map(somebody, claim, value)
    with protected.client(issued) as http:
        require_refused(http.get("/keys"), 401, None)
        protected.iam.grant(somebody.iam_id, Role.WRITER, serviceInstance=protected.service.state.instance_id)
        created = http.post("/keys", json=create_body("by certificate"))
        assert created.status_code == 201, created.text
        key = created.json()["resources"][0]
        assert key["createdBy"] == somebody.iam_id
        for _ in range(2):
            assert http.post(f"/keys/{key['id']}/actions/wrap").status_code == 200
        assert http.delete(f"/keys/{key['id']}").status_code == 401
        assert protected.service.state.run("iam", "logins", "remove", login).returncode == 0
        log_in(protected.service, protected.service.state.api_key)
        require_refused(http.post(f"/keys/{key['id']}/actions/wrap"), 401, None)


def test_without_certificate_or_mapping_nobody_comes_in(protected: Protected) -> None:
    stranger = protected.ours.issue("stranger", [x509.DNSName("stranger.bank.example")])
    for issued in (None, stranger):
        with protected.client(issued) as http:
            for method, path in (("GET", "/keys"), ("POST", "/keys/x/actions/wrap")):
                require_refused(http.request(method, path), 401, None)


def test_a_certificate_of_another_authority_does_not_finish_the_handshake(protected: Protected) -> None:
    """Whatever name it carries."""
    protected.map(protected.iam.somebody(), "san:dns", "mapped.bank.example")
    forged = protected.other.issue("forged", [x509.DNSName("mapped.bank.example")])
    with protected.client(forged) as http, pytest.raises(httpx.TransportError):
        http.get("/keys")


def test_a_token_counts_before_a_certificate(protected: Protected) -> None:
    """A bad token is refused although the certificate would do."""
    issued = protected.ours.issue("both", [x509.DNSName("both.bank.example")])
    somebody = protected.iam.somebody()
    protected.map(somebody, "san:dns", "both.bank.example")
    protected.iam.grant(somebody.iam_id, Role.READER)
    with protected.client(issued) as http:
        assert http.get("/keys").status_code == 200
        for bad, status in (("", 401), ("Bearer a.b.c", 400), ("Basic x", 400)):
            assert http.get("/keys", headers={"Authorization": bad}).status_code == status
        token = log_in(protected.service, protected.iam.somebody().api_key)
        assert http.get("/keys", headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_a_certificate_of_two_identities_is_nobody(protected: Protected) -> None:
    names = [x509.DNSName("one.bank.example"), x509.DNSName("two.bank.example")]
    issued = protected.ours.issue("two", names)
    for name in ("one.bank.example", "two.bank.example"):
        somebody = protected.iam.somebody()
        protected.iam.grant(somebody.iam_id, Role.READER)
        protected.map(somebody, "san:dns", name)
    with protected.client(issued) as http:
        require_refused(http.get("/keys"), 401, None)


def test_a_certificate_ends_while_the_connection_lives(protected: Protected) -> None:
    """Its end counts at each request, not only at the handshake."""
    somebody = protected.iam.somebody()
    protected.iam.grant(somebody.iam_id, Role.READER)
    protected.map(somebody, "san:dns", "short.bank.example")
    life = dt.timedelta(seconds=8)
    issued = protected.ours.issue("short", [x509.DNSName("short.bank.example")], life=life)
    ends_at = dt.datetime.now(dt.UTC) + life
    with protected.client(issued) as http:
        assert http.get("/keys").status_code == 200
        while dt.datetime.now(dt.UTC) < ends_at:
            assert http.get("/keys").status_code in (200, 401)
        assert http.get("/keys").status_code == 401
