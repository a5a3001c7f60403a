"""Cryptoki, the C interface of PKCS#11 2.40, through cffi: constants, one loaded module, one session.

Every function goes through C_GetFunctionList, because some modules (NSS, p11-kit) export no other symbol. cffi releases
the GIL in each call. Nothing above this file sees a pointer.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import cffi

from hsmkms.domain.frame import MAX_FRAME_BYTES
from hsmkms.errors import TokenRefused
from hsmkms.telemetry.metrics import token_call
from hsmkms.token.returned import CKR_ALREADY_INITIALIZED, CKR_NOT_INITIALIZED, CKR_OK, CryptokiError

CKF_RW_SESSION, CKF_SERIAL_SESSION, CKF_OS_LOCKING_OK = 0x2, 0x4, 0x2
CKF_TOKEN_INITIALIZED = 0x400
CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED = 0x10000, 0x20000, 0x40000
CKU_USER: Final = 1
CKO_PUBLIC_KEY, CKO_PRIVATE_KEY, CKO_SECRET_KEY = 2, 3, 4
CKK_RSA, CKK_EC, CKK_GENERIC_SECRET, CKK_AES = 0x0, 0x3, 0x10, 0x1F
CKA_CLASS, CKA_TOKEN, CKA_PRIVATE, CKA_LABEL, CKA_VALUE = 0x0, 0x1, 0x2, 0x3, 0x11
CKA_KEY_TYPE, CKA_ID, CKA_SENSITIVE, CKA_ENCRYPT, CKA_DECRYPT = 0x100, 0x102, 0x103, 0x104, 0x105
CKA_WRAP, CKA_UNWRAP, CKA_SIGN, CKA_VERIFY, CKA_DERIVE = 0x106, 0x107, 0x108, 0x10A, 0x10C
CKA_SIGN_RECOVER, CKA_VERIFY_RECOVER = 0x109, 0x10B
CKA_VALUE_LEN, CKA_EXTRACTABLE, CKA_LOCAL, CKA_NEVER_EXTRACTABLE = 0x161, 0x162, 0x163, 0x164
CKA_ALWAYS_SENSITIVE, CKA_MODIFIABLE, CKA_COPYABLE = 0x165, 0x170, 0x171
CKA_CHECK_VALUE: Final = 0x90
CKA_EC_PARAMS, CKA_EC_POINT = 0x180, 0x181
CKA_MODULUS, CKA_MODULUS_BITS, CKA_PUBLIC_EXPONENT = 0x120, 0x121, 0x122
CKM_EC_KEY_PAIR_GEN, CKM_ECDSA, CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP = 0x1040, 0x1041, 0x1080, 0x2109
CKM_SHA256_HMAC, CKM_GENERIC_SECRET_KEY_GEN = 0x251, 0x350
CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_RSA_X_509, CKM_RSA_PKCS_OAEP = 0x0, 0x3, 0x9
CKM_AES_ECB, CKM_AES_CMAC = 0x1081, 0x108A
CKM_AES_CBC_PAD, CKM_AES_GCM, CKM_SHA_1, CKM_SHA256 = 0x1085, 0x1087, 0x220, 0x250
CKG_MGF1_SHA1, CKG_MGF1_SHA256, CKZ_DATA_SPECIFIED = 1, 2, 1

Value = bool | int | bytes | str
Template = Mapping[int, Value]

_SIGNATURES: Final = {
    "Initialize": "void *",
    "Finalize": "void *",
    "GetInfo": "void *",
    "GetFunctionList": None,
    "GetSlotList": "CK_BYTE, CK_ULONG *, CK_ULONG *",
    "GetSlotInfo": None,
    "GetTokenInfo": "CK_ULONG, CK_TOKEN_INFO *",
    "GetMechanismList": "CK_ULONG, CK_ULONG *, CK_ULONG *",
    "GetMechanismInfo": None,
    "InitToken": "CK_ULONG, const CK_BYTE *, CK_ULONG, const CK_BYTE *",
    "InitPIN": "CK_ULONG, const CK_BYTE *, CK_ULONG",
    "SetPIN": None,
    "OpenSession": "CK_ULONG, CK_ULONG, void *, void *, CK_ULONG *",
    "CloseSession": "CK_ULONG",
    "CloseAllSessions": "CK_ULONG",
    "GetSessionInfo": None,
    "GetOperationState": None,
    "SetOperationState": None,
    "Login": "CK_ULONG, CK_ULONG, const CK_BYTE *, CK_ULONG",
    "Logout": None,
    "CreateObject": "CK_ULONG, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *",
    "CopyObject": "CK_ULONG, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *",
    "DestroyObject": "CK_ULONG, CK_ULONG",
    "GetObjectSize": None,
    "GetAttributeValue": "CK_ULONG, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG",
    "SetAttributeValue": None,
    "FindObjectsInit": "CK_ULONG, CK_ATTRIBUTE *, CK_ULONG",
    "FindObjects": "CK_ULONG, CK_ULONG *, CK_ULONG, CK_ULONG *",
    "FindObjectsFinal": "CK_ULONG",
    "EncryptInit": "CK_ULONG, CK_MECHANISM *, CK_ULONG",
    "Encrypt": "CK_ULONG, const CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *",
    **dict.fromkeys(["EncryptUpdate", "EncryptFinal"]),
    "DecryptInit": "CK_ULONG, CK_MECHANISM *, CK_ULONG",
    "Decrypt": "CK_ULONG, const CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *",
    **dict.fromkeys(
        ["DecryptUpdate", "DecryptFinal", "DigestInit", "Digest", "DigestUpdate", "DigestKey", "DigestFinal"]
    ),
    "SignInit": "CK_ULONG, CK_MECHANISM *, CK_ULONG",
    "Sign": "CK_ULONG, const CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *",
    **dict.fromkeys(
        ["SignUpdate", "SignFinal", "SignRecoverInit", "SignRecover", "VerifyInit", "Verify", "VerifyUpdate"]
    ),
    **dict.fromkeys(
        ["VerifyFinal", "VerifyRecoverInit", "VerifyRecover", "DigestEncryptUpdate", "DecryptDigestUpdate"]
    ),
    **dict.fromkeys(["SignEncryptUpdate", "DecryptVerifyUpdate"]),
    "GenerateKey": "CK_ULONG, CK_MECHANISM *, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *",
    "GenerateKeyPair": "CK_ULONG, CK_MECHANISM *, CK_ATTRIBUTE *, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *,"
    " CK_ULONG *",
    "WrapKey": "CK_ULONG, CK_MECHANISM *, CK_ULONG, CK_ULONG, CK_BYTE *, CK_ULONG *",
    "UnwrapKey": "CK_ULONG, CK_MECHANISM *, CK_ULONG, const CK_BYTE *, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *",
    "DeriveKey": None,
    "SeedRandom": None,
    "GenerateRandom": "CK_ULONG, CK_BYTE *, CK_ULONG",
    **dict.fromkeys(["GetFunctionStatus", "CancelFunction", "WaitForSlotEvent"]),
}
"""All members of CK_FUNCTION_LIST in their order (PKCS#11 2.40, section 3.6); those not called here have no
signature."""

# cffi makes types at run time, so its objects are `Any` here; none leaves this package.
CData = Any
ffi: Final[CData] = cffi.FFI()
ffi.cdef(
    """
typedef unsigned long CK_ULONG; typedef unsigned char CK_BYTE;
typedef struct { CK_ULONG type; void *pValue; CK_ULONG ulValueLen; } CK_ATTRIBUTE;
typedef struct { CK_ULONG mechanism; void *pParameter; CK_ULONG ulParameterLen; } CK_MECHANISM;
typedef struct { CK_ULONG hashAlg, mgf, source; void *pSourceData; CK_ULONG ulSourceDataLen; }
  CK_RSA_PKCS_OAEP_PARAMS;
typedef struct { CK_BYTE *pIv; CK_ULONG ulIvLen, ulIvBits; CK_BYTE *pAAD; CK_ULONG ulAADLen, ulTagBits; }
  CK_GCM_PARAMS;
typedef struct { void *create, *destroy, *lock, *unlock; CK_ULONG flags; void *reserved; } CK_C_INITIALIZE_ARGS;
typedef struct { CK_BYTE label[32], manufacturer[32], model[16], serial[16]; CK_ULONG flags, max_sessions, sessions,
  max_rw_sessions, rw_sessions, max_pin, min_pin, public_total, public_free, private_total, private_free;
  CK_BYTE hardware[2], firmware[2], utc_time[16]; } CK_TOKEN_INFO;
typedef struct { CK_BYTE major, minor; """
    + " ".join(
        f"CK_ULONG (*C_{name})({arguments});" if arguments else f"void *C_{name};"
        for name, arguments in _SIGNATURES.items()
    )
    + """ } CK_FUNCTION_LIST;
CK_ULONG C_GetFunctionList(CK_FUNCTION_LIST **);
"""
)


@functools.cache
def load_functions(path: str) -> CData:
    """The function list of the PKCS#11 library at `path`, loaded once: cffi keeps what it loads, 7 KiB each time, and a
    process that waits for its token asks again every second. Raises TokenRefused when it is not one."""
    try:
        library = ffi.dlopen(path)
        get_function_list = library.C_GetFunctionList
    except (OSError, AttributeError) as error:
        raise TokenRefused(f"{path} cannot be loaded as a PKCS#11 library. Check the setting pkcs11_module.") from error
    functions = ffi.new("CK_FUNCTION_LIST **")
    check("C_GetFunctionList", get_function_list(functions))
    return functions[0]


def check(function: str, returned: int) -> None:
    """Raise CryptokiError unless the function returned CKR_OK."""
    if returned != CKR_OK:
        raise CryptokiError(function, returned)


def initialize(functions: CData) -> bool:
    """C_Initialize with operating system locking: without it SoftHSM uses no mutexes and threads crash it. False if it
    was initialised before, and still has its sessions."""
    arguments = ffi.new("CK_C_INITIALIZE_ARGS *")
    arguments.flags = CKF_OS_LOCKING_OK
    returned = functions.C_Initialize(arguments)
    if returned == CKR_ALREADY_INITIALIZED:
        return False
    check("C_Initialize", returned)
    return True


def finalize(functions: CData) -> None:
    """C_Finalize; a library that was not initialised is as good as finalised."""
    returned = functions.C_Finalize(ffi.NULL)
    if returned != CKR_NOT_INITIALIZED:
        check("C_Finalize", returned)


class Attributes:
    """A C attribute array laid out once, with the memory that its pointers need."""

    def __init__(self, template: Template) -> None:
        self.array: CData = ffi.new("CK_ATTRIBUTE[]", len(template))
        self.count = len(template)
        self._memory = [_to_c(value) for value in template.values()]
        for attribute, kind, memory in zip(self.array, template, self._memory, strict=True):
            attribute.type = kind
            attribute.pValue = ffi.cast("void *", memory)
            attribute.ulValueLen = ffi.sizeof(memory)


def _to_c(value: Value) -> CData:
    if isinstance(value, bool):
        return ffi.new("CK_BYTE[]", [int(value)])
    if isinstance(value, int):
        return ffi.new("CK_ULONG[]", [value])
    encoded = value.encode() if isinstance(value, str) else value
    # From bytes alone cffi would make a C string, one byte longer.
    return ffi.new(f"CK_BYTE[{len(encoded)}]", list(encoded))


def mechanism(kind: int) -> CData:
    """A mechanism without a parameter, as nearly all that this service uses are."""
    result = ffi.new("CK_MECHANISM *")
    result.mechanism = kind
    return result


class Mechanism:
    """A mechanism with a parameter of `length` bytes. Whoever uses the pointer keeps this object, which owns all memory
    that it leads to."""

    def __init__(self, kind: int, parameter: CData = ffi.NULL, length: int = 0, *memory: CData) -> None:
        self.pointer = mechanism(kind)
        self.pointer.pParameter = ffi.cast("void *", parameter)
        self.pointer.ulParameterLen = length
        self._memory = (parameter, *memory)


def oaep(hash_kind: int, mask: int) -> Mechanism:
    """CKM_RSA_PKCS_OAEP with an empty label."""
    parameter = ffi.new("CK_RSA_PKCS_OAEP_PARAMS *")
    parameter.hashAlg, parameter.mgf, parameter.source = hash_kind, mask, CKZ_DATA_SPECIFIED
    return Mechanism(CKM_RSA_PKCS_OAEP, parameter, ffi.sizeof("CK_RSA_PKCS_OAEP_PARAMS"))


def gcm(iv: bytes) -> Mechanism:
    """CKM_AES_GCM without additional data, with a tag of 16 bytes."""
    parameter, memory = ffi.new("CK_GCM_PARAMS *"), _to_c(iv)
    parameter.pIv, parameter.ulIvLen, parameter.ulIvBits, parameter.ulTagBits = memory, len(iv), 8 * len(iv), 128
    return Mechanism(CKM_AES_GCM, parameter, ffi.sizeof("CK_GCM_PARAMS"), memory)


def cbc_pad(iv: bytes) -> Mechanism:
    """CKM_AES_CBC_PAD."""
    return Mechanism(CKM_AES_CBC_PAD, _to_c(iv), len(iv))


_DEK: Final = {
    CKA_CLASS: CKO_SECRET_KEY,
    CKA_KEY_TYPE: CKK_GENERIC_SECRET,
    CKA_TOKEN: False,
    # A private session object makes SoftHSM encrypt it with a key of its own and decrypt it again; it lives for
    # microseconds inside this process and is readable by its owner either way.
    CKA_PRIVATE: False,
    CKA_SENSITIVE: False,
    CKA_EXTRACTABLE: True,
}
_MAX_SEALED: Final = MAX_FRAME_BYTES + 8
_ATTRIBUTE_BYTES: Final = 1_024


class Session:
    """One open session. Not for two threads at once: the pool lends it to one caller at a time.

    Handles are plain integers, valid in every session of this process until the module is finalised.
    """

    def __init__(self, functions: CData, slot: int) -> None:
        self._c = functions
        self._number = ffi.new("CK_ULONG *")
        self._handle = ffi.new("CK_ULONG *")
        returned = functions.C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, ffi.NULL, ffi.NULL, self._handle)
        check("C_OpenSession", returned)
        self._session: int = self._handle[0]
        self._key_wrap = mechanism(CKM_AES_KEY_WRAP)
        self._out = ffi.new("CK_BYTE[]", _MAX_SEALED)
        self._out_view = ffi.buffer(self._out)
        self._in = ffi.new("CK_BYTE[]", MAX_FRAME_BYTES)
        self._in_view = ffi.buffer(self._in)
        self._opened = Attributes(_DEK)
        self._created = Attributes({**_DEK, CKA_VALUE: b""})
        self._created_value = self._created.array + (self._created.count - 1)
        self._created_value.pValue = ffi.cast("void *", self._in)
        self._value_attribute = ffi.new("CK_ATTRIBUTE *")
        self._value_attribute.type = CKA_VALUE
        self._value_attribute.pValue = ffi.cast("void *", self._out)
        # Looked up once: cffi makes an object of a function each time that one is taken out of the list.
        self._create_object, self._destroy_object = functions.C_CreateObject, functions.C_DestroyObject
        self._wrap_key, self._unwrap_key = functions.C_WrapKey, functions.C_UnwrapKey
        self._get_attribute_value = functions.C_GetAttributeValue
        self.destroyed_objects = 0
        self.call_began = math.inf
        """When who has it began his call of the library (`time.monotonic`); infinite while nobody has it."""
        self.thread = 0
        self.patience_s = 0.0

    def begin_call(self) -> None:
        """Begin another call than the borrower's first: what takes many calls is slow for that, and does not hang. A
        hot call has few, and is counted from the moment that the session was lent."""
        self.call_began = time.monotonic()

    def close(self) -> None:
        """C_CloseSession."""
        check("C_CloseSession", self._c.C_CloseSession(self._session))

    @token_call("login")
    def login(self, pin: bytes) -> int:
        """C_Login as the normal user; returns the CK_RV, because its refusals are told apart by the caller."""
        return int(self._c.C_Login(self._session, CKU_USER, pin, len(pin)))

    def init_pin(self, so_pin: bytes, pin: bytes) -> None:
        """Log in as the security officer and set the user PIN (C_Login, C_InitPIN)."""
        check("C_Login", self._c.C_Login(self._session, 0, so_pin, len(so_pin)))
        check("C_InitPIN", self._c.C_InitPIN(self._session, pin, len(pin)))

    @token_call("wrap")
    def seal(self, key: int, frame: bytes) -> bytes:
        """CKM_AES_KEY_WRAP of `frame` (a multiple of 8 bytes) under `key`: 8 bytes longer."""
        length = len(frame)
        session, handle, number = self._session, self._handle, self._number
        self._in_view[0:length] = frame
        self._created_value.ulValueLen = length
        try:
            check("C_CreateObject", self._create_object(session, self._created.array, self._created.count, handle))
        finally:
            self._in_view[0:length] = bytes(length)
        dek = handle[0]
        number[0] = _MAX_SEALED
        wrapped = self._wrap_key(session, self._key_wrap, key, dek, self._out, number)
        destroyed = self._destroy_object(session, dek)
        self.destroyed_objects += 1
        if wrapped or destroyed:
            check("C_WrapKey", wrapped)
            check("C_DestroyObject", destroyed)
        return bytes(self._out_view[0 : number[0]])

    @token_call("unwrap")
    def open(self, key: int, sealed: bytes) -> bytes:
        """The frame that `seal` took. Raises CryptokiError when RFC 3394's integrity check fails, and otherwise."""
        session, handle, opened = self._session, self._handle, self._opened
        check(
            "C_UnwrapKey",
            self._unwrap_key(session, self._key_wrap, key, sealed, len(sealed), opened.array, opened.count, handle),
        )
        dek = handle[0]
        value = self._value_attribute
        value.ulValueLen = _MAX_SEALED
        read = self._get_attribute_value(session, dek, value, 1)
        destroyed = self._destroy_object(session, dek)
        self.destroyed_objects += 1
        check("C_GetAttributeValue", read)
        length = value.ulValueLen
        frame = bytes(self._out_view[0:length])
        self._out_view[0:length] = bytes(length)
        check("C_DestroyObject", destroyed)
        return frame

    @token_call("random")
    def random(self, length: int) -> bytes:
        """`length` bytes of the token's C_GenerateRandom."""
        data = ffi.new("CK_BYTE[]", length)
        check("C_GenerateRandom", self._c.C_GenerateRandom(self._session, data, length))
        return bytes(ffi.buffer(data))

    @token_call("generate_key")
    def generate_key(self, kind: int, template: Template) -> int:
        """C_GenerateKey; the handle."""
        self.begin_call()
        attributes, handle = Attributes(template), ffi.new("CK_ULONG *")
        returned = self._c.C_GenerateKey(self._session, mechanism(kind), attributes.array, attributes.count, handle)
        check("C_GenerateKey", returned)
        return int(handle[0])

    @token_call("generate_key_pair")
    def generate_key_pair(self, kind: int, public: Template, private: Template) -> tuple[int, int]:
        """C_GenerateKeyPair; the handles of the public and the private key."""
        self.begin_call()
        first, second = Attributes(public), Attributes(private)
        handles = ffi.new("CK_ULONG[2]")
        returned = self._c.C_GenerateKeyPair(
            self._session,
            mechanism(kind),
            first.array,
            first.count,
            second.array,
            second.count,
            handles,
            handles + 1,
        )
        check("C_GenerateKeyPair", returned)
        return int(handles[0]), int(handles[1])

    @token_call("create_object")
    def create_object(self, template: Template) -> int:
        """C_CreateObject; the handle."""
        self.begin_call()
        attributes, handle = Attributes(template), ffi.new("CK_ULONG *")
        check("C_CreateObject", self._c.C_CreateObject(self._session, attributes.array, attributes.count, handle))
        return int(handle[0])

    @token_call("copy_object")
    def copy_object(self, source: int, template: Template) -> int:
        """C_CopyObject; the handle of the copy."""
        self.begin_call()
        attributes, handle = Attributes(template), ffi.new("CK_ULONG *")
        check("C_CopyObject", self._c.C_CopyObject(self._session, source, attributes.array, attributes.count, handle))
        return int(handle[0])

    @token_call("wrap_key")
    def wrap_key(self, wrapping: int, wrapped: int) -> bytes:
        """C_WrapKey of an object by CKM_AES_KEY_WRAP, as an attacker would call it (see `selftest`)."""
        self.begin_call()
        out, length = ffi.new("CK_BYTE[]", 512), ffi.new("CK_ULONG *", 512)
        check("C_WrapKey", self._c.C_WrapKey(self._session, self._key_wrap, wrapping, wrapped, out, length))
        return bytes(ffi.buffer(out, length[0]))

    @token_call("unwrap_key")
    def unwrap(self, how: Mechanism, key: int, wrapped: bytes, template: Template) -> int:
        """C_UnwrapKey; the handle of the key that was inside."""
        self.begin_call()
        attributes, handle = Attributes(template), ffi.new("CK_ULONG *")
        returned = self._c.C_UnwrapKey(
            self._session, how.pointer, key, wrapped, len(wrapped), attributes.array, attributes.count, handle
        )
        check("C_UnwrapKey", returned)
        return int(handle[0])

    @token_call("encrypt")
    def encrypt(self, kind: int, key: int, data: bytes) -> bytes:
        """C_EncryptInit and C_Encrypt of at most 512 bytes."""
        self.begin_call()
        out, length = ffi.new("CK_BYTE[]", 512), ffi.new("CK_ULONG *", 512)
        check("C_EncryptInit", self._c.C_EncryptInit(self._session, mechanism(kind), key))
        check("C_Encrypt", self._c.C_Encrypt(self._session, data, len(data), out, length))
        return bytes(ffi.buffer(out, length[0]))

    @token_call("decrypt")
    def decrypt(self, how: Mechanism, key: int, data: bytes) -> bytearray:
        """C_DecryptInit and C_Decrypt of at most 1,024 bytes; the memory of the library is wiped."""
        self.begin_call()
        out, length = ffi.new("CK_BYTE[]", 1024), ffi.new("CK_ULONG *", 1024)
        check("C_DecryptInit", self._c.C_DecryptInit(self._session, how.pointer, key))
        try:
            check("C_Decrypt", self._c.C_Decrypt(self._session, data, len(data), out, length))
            return bytearray(ffi.buffer(out, length[0]))
        finally:
            ffi.memmove(out, bytes(1024), 1024)

    @token_call("create_key")
    def create_from(self, template: Template, value: bytearray) -> int:
        """C_CreateObject of a key whose CKA_VALUE is `value`; the copy that the call needs is wiped. The handle."""
        self.begin_call()
        attributes, handle = Attributes({**template, CKA_VALUE: b""}), ffi.new("CK_ULONG *")
        memory = ffi.new("CK_BYTE[]", len(value))
        ffi.memmove(memory, value, len(value))
        last = attributes.array[attributes.count - 1]
        last.pValue, last.ulValueLen = ffi.cast("void *", memory), len(value)
        try:
            check("C_CreateObject", self._c.C_CreateObject(self._session, attributes.array, attributes.count, handle))
            return int(handle[0])
        finally:
            ffi.memmove(memory, bytes(len(value)), len(value))

    @token_call("destroy")
    def destroy(self, handle: int) -> None:
        """C_DestroyObject."""
        self.begin_call()
        check("C_DestroyObject", self._c.C_DestroyObject(self._session, handle))
        self.destroyed_objects += 1

    @token_call("read")
    def read(self, handle: int, kinds: Sequence[int]) -> dict[int, bytes]:
        """Attributes of an object as raw bytes; those that are sensitive or unknown to the token are left out."""
        found = self._read_at_once(handle, kinds)
        if found is not None:
            return found
        # What a token leaves of the others then is not the same everywhere, so each is asked for alone.
        alone = [self._read_at_once(handle, (kind,)) for kind in kinds]
        return {kind: value for one in alone if one is not None for kind, value in one.items()}

    def _read_at_once(self, handle: int, kinds: Sequence[int]) -> dict[int, bytes] | None:
        """One C_GetAttributeValue; None when one of the attributes is not given."""
        self.begin_call()
        attributes, memory = ffi.new("CK_ATTRIBUTE[]", len(kinds)), ffi.new("CK_BYTE[]", _ATTRIBUTE_BYTES * len(kinds))
        for place, kind in enumerate(kinds):
            attributes[place].type, attributes[place].ulValueLen = kind, _ATTRIBUTE_BYTES
            attributes[place].pValue = ffi.cast("void *", memory + _ATTRIBUTE_BYTES * place)
        returned = self._c.C_GetAttributeValue(self._session, handle, attributes, len(kinds))
        if returned in CryptokiError.ATTRIBUTE_NOT_GIVEN:
            return None
        check("C_GetAttributeValue", returned)
        return {
            kind: bytes(ffi.buffer(memory + _ATTRIBUTE_BYTES * place, attributes[place].ulValueLen))
            for place, kind in enumerate(kinds)
        }

    @token_call("find")
    def find(self, template: Template) -> list[int]:
        """Handles of all objects that match. The search is ended before the caller does anything else."""
        attributes = Attributes(template)
        found: list[int] = []
        handles = ffi.new("CK_ULONG[]", 1024)
        self.begin_call()
        check("C_FindObjectsInit", self._c.C_FindObjectsInit(self._session, attributes.array, attributes.count))
        try:
            while True:
                self.begin_call()
                returned = self._c.C_FindObjects(self._session, handles, 1024, self._number)
                check("C_FindObjects", returned)
                if self._number[0] == 0:
                    return found
                found += [int(handle) for handle in handles[0 : self._number[0]]]
        finally:
            self._c.C_FindObjectsFinal(self._session)

    @token_call("sign")
    def sign(self, kind: int, key: int, digest: bytes) -> bytes:
        """C_SignInit and C_Sign of a digest or, for a MAC, of a message; at most 512 bytes."""
        self.begin_call()
        out, length = ffi.new("CK_BYTE[]", 512), ffi.new("CK_ULONG *", 512)
        check("C_SignInit", self._c.C_SignInit(self._session, mechanism(kind), key))
        check("C_Sign", self._c.C_Sign(self._session, digest, len(digest), out, length))
        return bytes(ffi.buffer(out, length[0]))


def as_bools(attributes: Mapping[int, bytes], kinds: Iterable[int]) -> dict[int, bool | None]:
    """Boolean attributes; None where the token did not give one."""
    return {kind: (attributes[kind] != b"\0" if kind in attributes else None) for kind in kinds}
