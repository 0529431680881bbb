"""`python -m pycap`: the program `pycap`, by the interpreter that is named."""

from pycap.cli import main

if __name__ == "__main__":
    main()
