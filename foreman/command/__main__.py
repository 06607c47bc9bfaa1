"""`python -m foreman.command`, where the command `foreman` is not on the path."""

from foreman.command.main import main

if __name__ == "__main__":
    main(prog_name="foreman")
