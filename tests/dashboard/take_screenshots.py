"""
The pictures in the documentation, taken of a running demo:

    aegis demo --seconds 90 & python tests/dashboard/take_screenshots.py http://127.0.0.1:8089/ docs/images
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from browser import opened

RUNNING_S = 45  # until the charts have something to show


async def pictures(url: str) -> dict[str, bytes]:
    taken = {}
    async with opened(url) as page:
        await page.look_like(height=1300)
        await page.until("document.querySelectorAll('#book tr').length > 40")
        await page.until(f"(window.since ??= Date.now()) && Date.now() - window.since > {1000 * RUNNING_S}", 120)
        await page.until("document.querySelector('[data-waiting=yes]') !== null")  # somebody waits in a lane
        taken["light"] = await page.picture()
        await page.look_like(height=1300, dark=True)
        taken["dark"] = await page.picture()
        await page.look_like(height=1000)
        await page.ask("document.querySelector('.columns').scrollIntoView()")
        taken["rooms"] = await page.picture()
        await page.look_like(width=390, height=844, phone=True)
        await page.ask("scrollTo(0, 0)")
        taken["phone"] = await page.picture()
        assert page.errors == []
    return taken


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in asyncio.run(pictures(sys.argv[1])).items():
        (folder / f"dashboard-{name}.png").write_bytes(picture)
