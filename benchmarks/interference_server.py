"""`swarm-server` whose links and engine can be switched from arm to arm by standard input."""

import json
import sys
import threading
from unittest.mock import patch

from swarm.cli.importing import importing

with importing():
    from interference_arms import patched_product
    from interference_control import obey
    from interference_streams import UPLINK, ArmLinks

    from swarm.cli.server import main


def _listen() -> None:
    for line in sys.stdin:
        obey(json.loads(line))


if __name__ == "__main__":
    UPLINK.enabled = sys.argv[1] == "--relay"
    if UPLINK.enabled:
        del sys.argv[1]
    threading.Thread(target=_listen, name="commands", daemon=True).start()
    with patched_product(server=True), patch("swarm.server.stay.Links", ArmLinks):
        main()
