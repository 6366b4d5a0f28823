"""`python -m penstock` is the command `penstock`."""

from .server.cli import main

if __name__ == "__main__":
    main()
