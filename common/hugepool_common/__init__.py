"""The ground under client and coordinator: words, checks, messages, pages.

Private: its names may change in any release. Users import :mod:`hugepool`.
"""
