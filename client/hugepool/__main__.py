"""``python -m hugepool``: the same as the ``hugepool`` script."""

from hugepool.cli import main

if __name__ == "__main__":
    main()
