"""What every adopter that keeps data does: a wrapped DEK on disk, its key followed, its memory guarded."""
