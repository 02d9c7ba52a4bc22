"""`python -m relu_study`: the command `relu-study`."""

from relu_study.cli import main

if __name__ == "__main__":
    main()
