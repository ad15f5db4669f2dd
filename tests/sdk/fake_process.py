"""The fake gateway in a process of its own, to be stopped and killed: `python -m tests.sdk.fake_process`.

Prints its address. Its job has not ended: a watch stays open behind what there is.
"""

import sys
import threading

from tests.sdk.fake_gateway import FakeGateway, Running, history

if __name__ == "__main__":
    running = Running(FakeGateway(events=history()[:8], hold=threading.Event()))
    running.start()
    sys.stdout.write(running.address + "\n")
    sys.stdout.flush()
    threading.Event().wait()
