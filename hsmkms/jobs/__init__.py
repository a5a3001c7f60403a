"""What happens without anybody asking: expiry, rotation, purge. Each is one service call under a database lease."""
