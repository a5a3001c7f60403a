"""Buckets of OpenStack Swift under root keys. `keymaster`, `s3` and `containers` run inside Swift, the rest anywhere."""
