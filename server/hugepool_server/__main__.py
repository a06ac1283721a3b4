"""``python -m hugepool_server``: the coordinator daemon."""

from hugepool_server.cli import main

if __name__ == "__main__":
    main()
