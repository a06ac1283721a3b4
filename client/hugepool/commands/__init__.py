"""The commands of ``hugepool``, one module a role. The command line imports them by name.

A command that touches no array speaks over a bare :class:`~hugepool.channel.Channel`,
and so answers without importing NumPy.
"""
