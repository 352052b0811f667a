"""``python -m bench``: the default experiment; with overrides, one run; with -m, a sweep."""

import sys

from bench.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
