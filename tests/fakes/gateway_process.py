"""The fake gateway in a process of its own, to be stopped and killed: `python -m tests.fakes.gateway_process`.

Prints its address. Its job has not ended: a watch stays open behind what there is.
"""

import sys
import threading

from tests.fakes.gateway import FakeGateway, Running, history

if __name__ == "__main__":
    running = Running(FakeGateway(events=history()[:8], hold=threading.Event()))
    running.start()
    sys.stdout.write(running.address + "\n")
    sys.stdout.flush()
    threading.Event().wait()
