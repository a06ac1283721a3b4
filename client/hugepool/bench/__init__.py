"""``hugepool bench``: the same gathers and products on every page kind, measured fairly."""
