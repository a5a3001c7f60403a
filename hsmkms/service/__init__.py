"""The use cases. Every method: caller first, then authorize, act, record."""
