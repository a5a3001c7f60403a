"""The `hsmkms` command line, one module per command group."""
