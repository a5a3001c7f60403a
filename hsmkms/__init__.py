"""hsmkms: a key management service that an organisation runs in front of its own HSM."""

__version__ = "0.1.0"
