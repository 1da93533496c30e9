"""
Writes a picture of the page as a browser shows it with one image answered; needs playwright and Chromium.

python tests/programs/photograph_page.py OUT.png IMAGE DIR…
"""

import re
import shutil
import subprocess
import sys

from playwright.sync_api import expect, sync_playwright


def main(out, image, *models):
    command = [sys.executable, "-m", "hgnetv2_hf", "demo", *models, "--examples", image]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(line.split()[0] for line in server.stdout if line.startswith("http"))
            with sync_playwright() as playwright:
                arguments = ["--no-sandbox", "--disable-gpu"]
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
                page = browser.new_page(viewport={"width": 1280, "height": 680})
                page.goto(address)
                page.locator("input[type=file]").first.set_input_files(image)
                expect(page.get_by_text(re.compile("ms to compute"))).to_have_count(len(models), timeout=60_000)
                page.wait_for_load_state("networkidle")
                page.wait_for_timeout(1000)  # bars and pictures fade in
                page.screenshot(path=out)
                browser.close()
        finally:
            server.send_signal(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
