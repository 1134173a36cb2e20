"""`python -m peftbench`."""

from peftbench.cli.main import main

if __name__ == "__main__":
    main()
