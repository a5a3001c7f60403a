"""Buckets of OpenStack Swift under root keys. What imports `swift` runs inside Swift."""
