"""python -m protonmf_cli"""

import sys

from protonmf_cli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
