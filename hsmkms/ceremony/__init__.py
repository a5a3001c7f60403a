"""The key ceremony: custodians bring a key, or have one born, on a machine with a token and without a network."""
