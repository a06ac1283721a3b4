"""The coordinator. Private: start it as ``hugepoold`` or ``hugepool serve``."""
