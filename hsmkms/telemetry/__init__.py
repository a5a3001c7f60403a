"""What the service tells its operator of itself: metrics, log lines, traces. A leaf: every room may use it."""
