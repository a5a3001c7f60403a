"""What happened: CADF events, their chain, the journal on disk, signed checkpoints, verification."""
