"""Everything PKCS#11. It knows version ids, frames and handles; it knows no tenants, states or callers."""
