"""IBM's unmodified `ibm-platform-services`: every call of it that the service has, and what the service refuses."""

from __future__ import annotations

import io
import itertools
import json
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Any, TypeAlias

import httpx
import pytest
from ibm_cloud_sdk_core import ApiException, get_query_param
from ibm_cloud_sdk_core.authenticators import IAMAuthenticator
from ibm_platform_services import IamAccessGroupsV2, IamIdentityV1, IamPolicyManagementV1, ResourceControllerV2
from ibm_platform_services import iam_access_groups_v2 as g
from ibm_platform_services import iam_identity_v1 as i
from ibm_platform_services import iam_policy_management_v1 as p
from ibm_platform_services import resource_controller_v2 as r
from keyprotect.ibm_key_protect_api_v2 import IbmKeyProtectApiV2

from tests.api.backstage import OtherInstance, found_instance
from tests.support.deployment import Service, State, create_body

COS = "cloud-object-storage"
NOWHERE = "4d4ff6f0-0000-4000-8000-000000000000"
READER, WRITER = (f"crn:v1:bluemix:public:iam::::serviceRole:{name}" for name in ("Reader", "Writer"))
NO_ACCESS = [{"errorMsg": "Unauthorized: The user does not have access to the specified resource"}]
Wish: TypeAlias = dict[str, Any]  # type, subject and resource of a policy, the last two as values by attribute


class Sdk:
    """All clients with one API key and one URL, and what an administrator makes with them."""

    def __init__(self, service: Service, api_key: str) -> None:
        authenticator = IAMAuthenticator(api_key, url=service.url)
        kinds = (ResourceControllerV2, IamIdentityV1, IamAccessGroupsV2, IamPolicyManagementV1, IbmKeyProtectApiV2)
        clients: list[Any] = [kind(authenticator=authenticator) for kind in kinds]
        for client in clients:
            client.set_service_url(service.url)
        self.instances, self.identities, self.groups, self.policies, self.keys = clients
        self.service, self.secret, self.log_in = service, api_key, authenticator.token_manager.get_token
        self.name = map("name {}".format, itertools.count()).__next__

    @cached_property
    def own_key(self) -> Any:
        return i.ApiKey.from_dict(self.identities.get_api_keys_details(iam_api_key=self.secret).get_result())

    account = property(lambda self: str(self.own_key.account_id))

    def service_id(self, *crns: str, **members: Any) -> Any:
        made = self.identities.create_service_id(self.account, self.name(), unique_instance_crns=list(crns), **members)
        return i.ServiceId.from_dict(made.get_result())

    def api_key(self, iam_id: str, **members: Any) -> Any:
        return i.ApiKey.from_dict(self.identities.create_api_key("key", iam_id, **members).get_result())

    def group(self, **members: Any) -> Any:
        return g.Group.from_dict(self.groups.create_access_group(self.account, self.name(), **members).get_result())

    def source(self, region: str = "global", guid: str = NOWHERE) -> str:
        return f"crn:v1:bluemix:public:{COS}:{region}:a/{self.account}:{guid}::"

    def authorization(self, guid: str, **subject: str) -> Wish:
        """Object storage on an instance."""
        resource = {"serviceName": "kms", "serviceInstance": guid, "accountId": self.account}
        subject = {"serviceName": COS, "accountId": self.account, **subject}
        return {"type": "authorization", "subject": subject, "resource": resource}

    def access(self, subject: str, **resource: str) -> Wish:
        """An identity or a group on keys."""
        name = "access_group_id" if subject.startswith("AccessGroupId-") else "iam_id"
        resource = {"serviceName": "kms", **resource, "accountId": self.account}
        return {"type": "access", "subject": {name: subject}, "resource": resource}


class Wire:
    """One version of the policy calls, and how that version writes a policy."""

    def __init__(self, admin: Sdk, version: int) -> None:
        self.v2, part = version == 2, "v2_" if version == 2 else ""
        calls = (getattr(admin.policies, f"{verb}_{part}policy") for verb in ("create", "get", "replace", "delete"))
        self.create, self.get, self.replace, self.delete = calls
        self.list = partial(getattr(admin.policies, f"list_{part}policies"), admin.account)
        kinds = ("Policy", "PolicyCollection", "PoliciesPager")
        self.model, self.collection, self.pager = (getattr(p, part[:2].upper() + kind) for kind in kinds)

    def body(self, wish: Wish, role: str = READER, operator: str = "stringEquals", **members: Any) -> dict[str, Any]:
        """The arguments of create and replace."""
        name, roles, members["type"] = "key" if self.v2 else "name", [{"role_id": role}], wish["type"]
        subject, resource = (
            {"attributes": [{name: k, "value": v, "operator": operator} for k, v in wish[part].items()]}
            for part in ("subject", "resource")
        )
        if self.v2:
            return {**members, "subject": subject, "resource": resource, "control": {"grant": {"roles": roles}}}
        return {**members, "subjects": [subject], "resources": [resource], "roles": roles}

    def granted(self, policy: dict[str, Any]) -> tuple[Any, ...]:  # what IBM's live tests compare
        it = self.model.from_dict({"state": "active", **policy})
        v1 = () if self.v2 else (it.subjects, it.resources, [role.role_id for role in it.roles])
        return v1 or (it.subject, it.resource, it.control)


@pytest.fixture(scope="module")
def admin(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    with Service(seed_state.copy_to(tmp_path_factory.mktemp("platform") / "state")) as service:
        yield Sdk(service, service.state.api_key)


@pytest.fixture
def target(admin: Sdk) -> str:
    return str(admin.instances.create_resource_instance("t", "us-south", "group", "plan").get_result()["guid"])


@pytest.fixture(scope="module")
def other(admin: Sdk) -> OtherInstance:
    return found_instance(admin.service, "other", "e" * 32)


@pytest.fixture(params=[1, 2])
def wire(admin: Sdk, request: pytest.FixtureRequest) -> Wire:
    return Wire(admin, request.param)


def refused(status: int, code: str, call: Any, *arguments: Any, **named: Any) -> str:
    """The message of a refusal in the platform's error body."""
    with pytest.raises(ApiException) as caught:
        call(*arguments, **named)
    body = caught.value.http_response.json()
    assert (caught.value.status_code, body["status_code"], body["errors"][0]["code"]) == (status, status, code), body
    return str(body["errors"][0]["message"])


def stream(**members: object) -> io.BytesIO:
    return io.BytesIO(json.dumps(members).encode())


def test_guide_an_authorization_is_all_a_source_may_and_ends_in_a_second(admin: Sdk, wire: Wire, target: str) -> None:
    bodies = [stream(**create_body(extractable=extractable)) for extractable in (False, True)]
    made = (admin.keys.create_key(target, body).get_result().json() for body in bodies)
    root, standard = (one["resources"][0]["id"] for one in made)
    keys = Sdk(admin.service, admin.api_key(admin.service_id(admin.source()).iam_id).apikey).keys

    def use(call: Any, ciphertext: str = "AAAA") -> Any:
        return call(root, target, stream(ciphertext=ciphertext)).get_result().json()

    def denied(*calls: Any) -> None:
        for call in calls:
            with pytest.raises(ApiException) as caught:
                call()
            assert (caught.value.status_code, caught.value.http_response.json()["resources"]) == (401, NO_ACCESS)

    wrap, metadata = partial(keys.wrap_key, root, target), partial(keys.get_key_metadata, root, target)
    opening = [partial(use, keys.unwrap_key), partial(use, keys.rewrap_key)]
    reading = [wrap, metadata, partial(keys.get_keys, target), *opening]
    calls = (keys.get_key, standard), (keys.rotate_key, root), (keys.delete_key, root), (keys.create_key_ring, "ring")
    more: list[Any] = [partial(call, subject, target) for call, subject in calls]
    more.append(lambda: keys.create_key(target, stream(**create_body())))
    denied(*reading, *more)
    policy = wire.create(**wire.body(admin.authorization(target))).get_result()["id"]
    refused(409, "policy_conflict_error", wire.create, **wire.body(admin.authorization(target), description="again"))
    wrapped = wrap().get_result().json()
    for ciphertext in (wrapped["ciphertext"], use(keys.rewrap_key, wrapped["ciphertext"])["ciphertext"]):
        assert use(keys.unwrap_key, ciphertext)["plaintext"] == wrapped["plaintext"]
    assert metadata().get_result().json()["resources"][0]["id"] == root
    assert {key["id"] for key in keys.get_keys(target).get_result().json()["resources"]} == {root, standard}
    denied(*more)
    wire.delete(policy)
    deleted_at = time.monotonic()
    denied(wrap)
    assert time.monotonic() - deleted_at < 1
    denied(*reading, *more)
    delete = partial(admin.instances.delete_resource_instance, target)
    refused(409, "conflict", delete, recursive=True, headers={"Hsmkms-Confirm": NOWHERE})
    refused(409, "conflict", delete, headers={"Hsmkms-Confirm": target})
    assert delete(recursive=True, headers={"Hsmkms-Confirm": target}).get_status_code() == 204
    refused(404, "not_found", admin.instances.get_resource_instance, target)


def test_instances_are_made_found_renamed_and_deleted(admin: Sdk, target: str) -> None:
    client, name = admin.instances, admin.name()
    made = client.create_resource_instance(name, "us-south", "group", "plan").get_result()
    assert (made["name"], made["region_id"], made["resource_group_id"]) == (name, "us-south", "group")
    assert r.ResourceInstance.from_dict(made).last_operation.type == "create"
    for reference in (made["guid"], made["crn"]):
        assert client.get_resource_instance(reference).get_result() == made
    for filters in ({"guid": made["guid"]}, {"name": name}):
        assert client.list_resource_instances(**filters).get_result()["resources"] == [made]
    assert client.list_resource_instances(guid=NOWHERE).get_result()["resources"] == []
    assert r.ResourceInstancesList.from_dict(client.list_resource_instances(limit=1).get_result()).rows_count == 1
    guids = [one["guid"] for one in r.ResourceInstancesPager(client=client, limit=1).get_all()]
    assert len(guids) == len(set(guids) | {made["guid"], target})
    renamed = r.ResourceInstance.from_dict(client.update_resource_instance(made["crn"], name="new").get_result())
    assert (renamed.guid, renamed.name, renamed.last_operation.type) == (made["guid"], "new", "update")
    assert client.delete_resource_instance(made["guid"]).get_status_code() == 204
    refused(404, "not_found", client.get_resource_instance, made["guid"])


def test_service_ids_are_made_found_changed_locked_and_deleted(admin: Sdk) -> None:
    first = {"name": "first", "expires_at": "2049-01-02T18:30:00+0000"}
    client, made = admin.identities, admin.service_id(description="why", apikey=first)
    assert (made.description, made.locked, made.apikey.expires_at[:4]) == ("why", False, "2049")
    assert client.get_service_id(made.id).get_headers()["ETag"].strip('"') == made.entity_tag
    listed = client.list_service_ids(account_id=admin.account, name=made.name).get_result()
    assert [one.id for one in i.ServiceIdList.from_dict(listed).serviceids] == [made.id]
    changed = i.ServiceId.from_dict(client.update_service_id(made.id, made.entity_tag, name="new").get_result())
    assert (changed.name, changed.description) == ("new", "why")
    refused(412, "if_match_stale", client.update_service_id, made.id, made.entity_tag, name="newer")
    assert client.lock_service_id(made.id).get_status_code() == 204
    assert client.get_service_id(made.id).get_result()["locked"]
    refused(409, "conflict", client.update_service_id, made.id, "*", name="newer")
    refused(409, "conflict", client.delete_service_id, made.id)
    assert client.unlock_service_id(made.id).get_status_code() == 204
    assert client.delete_service_id(made.id).get_status_code() == 204
    refused(404, "not_found", client.get_service_id, made.id)
    refused(404, "not_found", client.get_api_key, made.apikey.id)


def test_api_keys_are_made_found_changed_locked_disabled_and_deleted(admin: Sdk) -> None:
    client, iam_id, expires_at = admin.identities, admin.service_id().iam_id, "2049-01-02T18:30+0000"
    made = admin.api_key(iam_id, description="why", expires_at=expires_at, account_id=admin.account)
    assert datetime.fromisoformat(made.expires_at) == datetime.fromisoformat(expires_at)

    def read() -> Any:
        return i.ApiKey.from_dict(client.get_api_key(made.id, include_activity=True).get_result())

    assert (read().apikey, read().entity_tag, read().created_by) == ("", made.entity_tag, admin.own_key.iam_id)
    assert Sdk(admin.service, made.apikey).log_in()
    assert read().activity.last_authn
    assert i.ApiKey.from_dict(client.get_api_keys_details(iam_api_key=made.apikey).get_result()).id == made.id
    listed = i.ApiKeyList.from_dict(client.list_api_keys(account_id=admin.account, iam_id=iam_id).get_result())
    assert [one.id for one in listed.apikeys] == [made.id]
    assert [one["id"] for one in client.list_api_keys().get_result()["apikeys"]] == [admin.own_key.id]
    client.update_api_key(made.id, made.entity_tag, name="new")
    assert (read().name, read().description, read().expires_at) == ("new", "why", made.expires_at)
    refused(412, "if_match_stale", client.update_api_key, made.id, made.entity_tag, name="newer")
    assert (client.lock_api_key(made.id).get_status_code(), read().locked) == (204, True)
    refused(409, "conflict", client.update_api_key, made.id, "*", name="newer")
    refused(409, "conflict", client.delete_api_key, made.id)
    assert client.unlock_api_key(made.id).get_status_code() == 204
    for change, disabled in ((client.disable_api_key, True), (client.enable_api_key, False)):
        assert change(made.id).get_status_code() == 204
        assert (read().locked, read().disabled) == (False, disabled)
    assert client.delete_api_key(made.id).get_status_code() == 204
    refused(404, "not_found", client.get_api_key, made.id)


@pytest.mark.parametrize(("call", "members"), [("list_service_ids", "serviceids"), ("list_api_keys", "apikeys")])
def test_identities_are_listed_page_by_page(admin: Sdk, call: str, members: str) -> None:
    made = [admin.service_id(apikey={"name": "first"}) for _ in range(3)]
    expected = {one.id for one in made} if members == "serviceids" else {one.apikey.id for one in made}
    query = {"account_id": admin.account, "pagesize": 2} | ({"scope": "account"} if members == "apikeys" else {})
    found, page = [], getattr(admin.identities, call)(**query).get_result()
    while page:
        found += [one["id"] for one in page[members]]
        token = get_query_param(page.get("next"), "pagetoken")  # as IBM's live test does
        page = token and getattr(admin.identities, call)(**query, pagetoken=token).get_result()
    assert len(found) == len(set(found) | expected)


def test_groups_are_made_found_changed_filled_emptied_and_deleted(admin: Sdk) -> None:
    client, made = admin.groups, admin.group(description="why")
    members = [admin.service_id().iam_id for _ in range(3)]
    tag = client.get_access_group(made.id).get_headers()["ETag"]
    pages = g.AccessGroupsPager(client=client, account_id=admin.account, limit=1)
    assert made.id in {one["id"] for one in pages.get_all()}
    changed = g.Group.from_dict(client.update_access_group(made.id, tag, name=admin.name()).get_result())
    assert (changed.id, changed.description, changed.name == made.name) == (made.id, "why", False)
    refused(412, "if_match_stale", client.update_access_group, made.id, tag, name=made.name)
    items = [g.AddGroupMembersRequestMembersItem(iam_id=iam_id, type="service") for iam_id in members]
    answer = client.add_members_to_access_group(made.id, members=items)
    added = g.AddGroupMembersResponse.from_dict(answer.get_result()).members
    assert [(one.iam_id, one.status_code) for one in added] == [(iam_id, 200) for iam_id in members]
    listed = g.GroupMembersList.from_dict(client.list_access_group_members(made.id, limit=2).get_result())
    assert (listed.total_count, [one.iam_id for one in listed.members]) == (3, members[:2])
    pages = g.AccessGroupMembersPager(client=client, access_group_id=made.id, limit=2).get_all()
    assert [one["iam_id"] for one in pages] == members
    of_member = g.GroupsList.from_dict(client.list_access_groups(admin.account, iam_id=members[0]).get_result())
    assert [one.id for one in of_member.groups] == [made.id]
    for call in (client.is_member_of_access_group, client.remove_member_from_access_group):
        assert call(made.id, members[0]).get_status_code() == 204
    with pytest.raises(ApiException, match="404"):
        client.is_member_of_access_group(made.id, members[0])
    refused(409, "conflict", client.delete_access_group, made.id)
    assert client.delete_access_group(made.id, force=True).get_status_code() == 204
    refused(404, "not_found", client.get_access_group, made.id)


def test_policies_are_granted_read_replaced_suspended_and_deleted(wire: Wire, admin: Sdk, target: str) -> None:
    group = admin.group().id
    body = wire.body(wish := admin.access(group, serviceInstance=target, keyRing="payments"), description="why")
    made = wire.model.from_dict(wire.create(**body).get_result())
    assert (made.state, made.description, made.created_by_id) == ("active", "why", admin.own_key.iam_id)
    for again in (Wire(admin, 1), Wire(admin, 2)):
        refused(409, "policy_conflict_error", again.create, **again.body(wish))
    read, wider = wire.get(made.id), wire.body(admin.access(group, serviceInstance=target), WRITER)
    assert wire.granted(read.get_result()) == wire.granted(body)
    assert wire.granted(wire.replace(made.id, read.get_headers()["ETag"], **wider).get_result()) == wire.granted(wider)
    refused(412, "if_match_stale", wire.replace, made.id, read.get_headers()["ETag"], **body)
    for state in ("deleted", "active"):
        tag = wire.get(made.id).get_headers()["ETag"]
        changed = admin.policies.update_policy_state(made.id, tag, state=state).get_result()
        assert p.Policy.from_dict(changed).state == state
        refused(412, "if_match_stale", admin.policies.update_policy_state, made.id, tag, state=state)
        for asked in ("deleted", "active"):
            found = wire.list(access_group_id=group, state=asked).get_result()["policies"]
            assert [one["id"] for one in found] == ([made.id] if asked == state else [])
    assert wire.delete(made.id).get_status_code() == 204
    refused(404, "policy_not_found", wire.get, made.id)


def test_policies_are_listed_by_subject_type_order_and_page(wire: Wire, admin: Sdk, target: str) -> None:
    group, iam_id = admin.group().id, admin.service_id().iam_id
    wishes = [admin.access(group, serviceInstance=target, keyRing=ring) for ring in ("one", "two", "three")]
    wishes += [admin.access(iam_id), admin.authorization(target)]
    *of_group, of_iam_id, authorization = (wire.create(**wire.body(wish)).get_result()["id"] for wish in wishes)

    def ids(**query: Any) -> tuple[list[str], str | None]:
        page = wire.collection.from_dict(wire.list(**query).get_result())
        return [one.id for one in page.policies], page.next and page.next.start

    assert (ids(access_group_id=group), ids(iam_id=iam_id)) == ((of_group, None), ([of_iam_id], None))
    assert ids(access_group_id=group, type="authorization") == ([], None)
    assert {authorization, of_iam_id} & set(ids(type="authorization")[0]) == {authorization}
    newest, start = ids(access_group_id=group, sort="-created_at", limit=2)
    assert newest == of_group[:0:-1]
    assert ids(access_group_id=group, sort="-created_at", limit=2, start=start) == (of_group[:1], None)
    pages = wire.pager(client=admin.policies, account_id=admin.account, access_group_id=group, limit=1).get_all()
    assert [one["id"] for one in pages] == of_group


def test_roles_are_listed_with_their_actions(admin: Sdk) -> None:
    asked = [{"account_id": admin.account}, {"source_service_name": COS, "policy_type": "authorization"}]
    answers = [admin.policies.list_roles(service_name="kms", **query).get_result() for query in asked]
    every, grantable = map(p.RoleCollection.from_dict, answers)
    assert ("Administrator" in {role.display_name for role in every.system_roles}, grantable.system_roles) == (True, [])
    (reader,) = (role for role in grantable.service_roles if role.crn == READER)
    allowed = {"kms.secrets.wrap", "kms.secrets.create"} & set(reader.actions)
    assert (reader.display_name, allowed) == ("Reader", {"kms.secrets.wrap"})


WRONG: dict[str, dict[str, Any]] = {
    "unknown role": {"role": READER + "s"},
    "unknown source": {"subject": {"serviceName": "event-streams"}},
    "unknown target": {"resource": {"serviceName": "secrets-manager"}},
    "foreign account": {"subject": {"accountId": "e" * 32}, "resource": {"accountId": "e" * 32}},
    "foreign source": {"subject": {"accountId": "e" * 32}},
    "unknown subject attribute": {"subject": {"department": "loans"}},
    "unknown resource attribute": {"resource": {"resourceGroupId": "default"}},
    "any source": {"subject": {"serviceName": "*"}},
    "wildcard in a source": {"operator": "stringMatch", "subject": {"serviceInstance": "4d4f*"}},
    "wildcard in a target": {"resource": {"serviceInstance": "4d4f*"}},
    "wildcard in a ring": {"resource": {"keyRing": "pay?"}},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_policy_that_is_not_understood_is_refused(wire: Wire, admin: Sdk, target: str, wrong: str) -> None:
    wish, changes = admin.authorization(target), dict(WRONG[wrong])
    wish |= {part: wish[part] | changes.pop(part, {}) for part in ("subject", "resource")}
    refused(400, "invalid_body", wire.create, **wire.body(wish, **changes))


def test_a_condition_or_a_tag_is_refused_not_ignored(wire: Wire, admin: Sdk, target: str) -> None:
    wish, tags = admin.authorization(target), [{"name": "env", "value": "test", "operator": "stringEquals"}]
    made, tagged = wire.create(**wire.body(wish)).get_result()["id"], wire.body(wish)
    (tagged["resource"] if wire.v2 else tagged["resources"][0])["tags"] = tags
    rule = {"key": "{{environment.attributes.day_of_week}}", "operator": "dayOfWeekAnyOf", "value": ["1+00:00"]}
    timed = [wire.body(wish, rule=rule, pattern="time-based-conditions:weekly:all-day")] if wire.v2 else []
    for body in (*timed, tagged):
        refused(400, "invalid_body", wire.create, **body)
        refused(400, "invalid_body", wire.replace, made, "*", **body)


def test_an_instance_of_another_account_reads_as_if_it_were_not(wire: Wire, admin: Sdk, other: OtherInstance) -> None:
    guids, group = (other.instance_id, NOWHERE), admin.group().id
    wishes = [*map(admin.authorization, guids), *(admin.access(group, serviceInstance=guid) for guid in guids)]
    assert len({refused(400, "invalid_body", wire.create, **wire.body(wish)) for wish in wishes}) == 1
    assert len({refused(404, "not_found", admin.instances.get_resource_instance, guid) for guid in guids}) == 1


def test_source_and_target_are_in_one_region(wire: Wire, admin: Sdk, target: str) -> None:
    guid = str(uuid.uuid4())
    admin.service_id(admin.source("eu-de", guid))
    for subject in ({"region": "eu-de"}, {"serviceInstance": guid}):
        body = wire.body(admin.authorization(target, **subject))
        assert "one region" in refused(400, "invalid_body", wire.create, **body)
    assert wire.create(**wire.body(admin.authorization(target, region="us-south"))).get_status_code() == 201


def test_what_acts_for_a_source_has_no_policy_and_no_group_and_groups_hold_no_groups(admin: Sdk, wire: Wire) -> None:
    add, group = partial(admin.groups.add_members_to_access_group, admin.group().id), admin.group().id
    bound = admin.service_id(admin.source()).iam_id
    for subject in (bound, "*", "iam-ServiceId-*", NOWHERE):
        refused(400, "invalid_body", wire.create, **wire.body(admin.access(subject)))
    for iam_id, kind in ((bound, "service"), (group, "user"), (group, "service"), (group, "group"), (NOWHERE, "user")):
        refused(400, "invalid_body", add, members=[{"iam_id": iam_id, "type": kind}])


def test_a_change_without_if_match_is_428(admin: Sdk, target: str) -> None:
    v1, v2, wish = Wire(admin, 1), Wire(admin, 2), admin.authorization(target)
    policy, identity = v1.create(**v1.body(wish)).get_result()["id"], admin.service_id()
    changes = [("PUT", f"/v1/policies/{policy}", v1.body(wish)), ("PUT", f"/v2/policies/{policy}", v2.body(wish))]
    changes += [("PATCH", f"/v1/policies/{policy}", {"state": "deleted"}), ("PUT", f"/v1/serviceids/{identity.id}", {})]
    changes += [("PUT", f"/v1/apikeys/{admin.own_key.id}", {}), ("PATCH", f"/v2/groups/{admin.group().id}", {})]
    headers = {"Authorization": f"Bearer {admin.log_in()}"}
    for method, path, body in changes:
        answer = httpx.request(method, admin.service.url + path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (428, "if_match_required"), path


def test_the_last_administrator_stays(admin: Sdk, other: OtherInstance) -> None:
    own = (last := Sdk(admin.service, other.api_key)).identities
    iam_id, less = last.own_key.iam_id, Wire(last, 1).body(last.access(last.own_key.iam_id))
    (policy,) = last.policies.list_policies(last.account, iam_id=iam_id).get_result()["policies"]
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    refused(409, "conflict", last.policies.update_policy_state, policy["id"], "*", state="deleted")
    refused(409, "conflict", last.policies.replace_policy, policy["id"], "*", **less)
    refused(409, "conflict", own.update_api_key, last.own_key.id, "*", expires_at=soon)
    calls = [(last.policies.delete_policy, policy["id"]), (last.policies.delete_v2_policy, policy["id"])]
    calls += [(call, last.own_key.id) for call in (own.delete_api_key, own.lock_api_key, own.disable_api_key)]
    calls += [(call, iam_id.removeprefix("iam-")) for call in (own.delete_service_id, own.lock_service_id)]
    for call, reference in calls:
        refused(409, "conflict", call, reference)
    assert last.policies.get_policy(policy["id"]).get_result() == policy


def test_an_api_key_that_does_not_count_gets_no_token_and_no_reason(admin: Sdk) -> None:
    client, owner, locked_owner = admin.identities, admin.service_id(), admin.service_id()
    made = [admin.api_key(owner.iam_id) for _ in range(4)]
    ends = datetime.now(UTC) + timedelta(seconds=3)
    made += [admin.api_key(owner.iam_id, expires_at=ends.isoformat()), admin.api_key(locked_owner.iam_id)]
    assert all(Sdk(admin.service, one.apikey).log_in() for one in made)
    for call, one in zip((client.lock_api_key, client.disable_api_key, client.delete_api_key), made, strict=False):
        call(one.id)
    made[3].apikey = made[3].apikey[:-1] + ("A" if made[3].apikey[-1] != "A" else "B")
    client.lock_service_id(locked_owner.id)
    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
    known = {"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."}
    for one in made:
        with pytest.raises(ApiException) as caught:
            Sdk(admin.service, one.apikey).log_in()
        body = caught.value.http_response.json()
        assert (caught.value.status_code, body.pop("context").keys(), body) == (400, {"requestId"}, known)
