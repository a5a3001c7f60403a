"""What the plugin refuses by itself, with words for the person who has to put it right."""

from __future__ import annotations

from hsmkms.adopters.client import AdopterError


class RequestInvalid(AdopterError):
    """What the API server asks for cannot be meant: too large, of another plugin, damaged."""


class PluginRefused(AdopterError):
    """The plugin cannot run as it is asked to: its socket, its key, its owner."""


class KeyUnusable(AdopterError):
    """The last look at the root key came to a refusal, in words."""
