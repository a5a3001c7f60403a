"""Values and pure tables: no I/O, no clock, no HTTP, no SQL, no PKCS#11."""
