"""`python -m relu_study`: the command `relu-study`."""

from relu_study.cli.commands import main

if __name__ == "__main__":
    main()
