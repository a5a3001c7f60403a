"""A directory that is encrypted under a root key, and a server that runs on it while the key may be used."""
