"""``python -m multinode_control_plane``: what ``multinode server run`` starts."""

import sys

from multinode_control_plane.server import main

if __name__ == "__main__":
    sys.exit(main())
