"""What the papers of this room claim, measured: one file per paper."""

__all__: list[str] = []
