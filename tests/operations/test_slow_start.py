"""Workers whose imports take long, as on a busy machine, are waited for and not replaced for ever."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.ports import free_port

IMPORTS_S = 12
"""uvicorn gives a worker 5 s for its first answer, and asks two of them one after the other."""
PROGRAM = """
import sys, time
import uvicorn
from hsmkms.api.serving import serve

if __name__ == "__mp_main__":
    time.sleep({seconds})

async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 204, "headers": []}})
    await send({{"type": "http.response.body"}})

if __name__ == "__main__":
    serve(uvicorn.Config("slow:app", port={port}, workers=2, lifespan="off"))
"""


def test_who_starts_slowly_comes_to_its_end(tmp_path: Path) -> None:
    port, script = free_port(), tmp_path / "slow.py"
    script.write_text(PROGRAM.format(seconds=IMPORTS_S, port=port))
    process = subprocess.Popen([sys.executable, str(script)])
    # Refused until the parent listens; from then on the first that has come so far accepts.
    with httpx.Client(transport=httpx.HTTPTransport(retries=6), timeout=60) as client:
        try:
            assert client.get(f"http://127.0.0.1:{port}/").status_code == 204
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
