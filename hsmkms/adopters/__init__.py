"""Data services that protect their data with a root key: own processes, clients of the HTTP API, of no other room."""
