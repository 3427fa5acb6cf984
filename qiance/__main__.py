"""`python -m qiance` is the command `qiance`."""

from qiance.cli import main

if __name__ == "__main__":
    main()
