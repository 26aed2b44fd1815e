# SPDX-License-Identifier: Apache-2.0
"""Every page of the site in a browser, on a desktop and on a telephone: nothing is wider than its column, no list reads
as a paragraph, and no picture is missing."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
WIDTHS = [1400, 400]
VERSION = "0.1"
BROWSERS = ["chromium", "chromium-browser", "google-chrome"]

# Code and tables may be scrolled on a telephone, inside their own box; a desktop has room for them.
CHECK = """<!DOCTYPE html><meta charset="utf-8"><body style="margin: 0"><script>
function faults(page, width, view) {
  const found = [], tell = (what, node) => found.push(
    `${page} at ${width}: ${what}: ${(node.textContent || node.src || node.tagName).trim().slice(0, 70)}`);
  const column = view.document.querySelector('article');
  if (!column) return [`${page}: no article`];
  // On a telephone the theme draws code and tables from edge to edge.
  const whole = view.document.querySelector('.md-content').getBoundingClientRect();
  const edge = (width > 1000 ? whole.right : view.innerWidth) + 1;
  const scrolls = node => /auto|scroll/.test(view.getComputedStyle(node).overflowX);
  for (const node of column.querySelectorAll('*')) {
    let box = node.parentElement;
    while (box !== column && !scrolls(box)) box = box.parentElement;
    const right = node.getBoundingClientRect().right;
    if (box === column && right > edge) tell('wider than its column', node);
    if (width > 1000 && scrolls(node) && node.scrollWidth > node.clientWidth + 1) tell('cut off', node);
  }
  if (view.document.documentElement.scrollWidth > view.innerWidth + 1) tell('scrolls sideways', column);
  for (const node of column.querySelectorAll('p')) {
    if (/(^|\\n)\\s*([-*+]|\\d+\\.) /.test(node.textContent)) tell('a list in a paragraph', node);
  }
  if (!view.document.querySelector('.md-version__link')) tell('no other version offered', column);
  for (const node of column.querySelectorAll('img')) if (!node.naturalWidth) tell('no picture', node);
  return found;
}
async function run() {
  const {pages, widths} = await (await fetch('/pages.json')).json();
  let all = [];
  for (const page of pages) for (const width of widths) {
    const frame = document.createElement('iframe');
    frame.style = `width: ${width}px; height: 900px; border: 0`;
    await new Promise(done => { frame.onload = done; frame.src = '/' + page; document.body.append(frame); });
    await frame.contentWindow.document.fonts.ready;
    // The theme fetches the list of versions after the page.
    for (let i = 0; i < 50 && !frame.contentWindow.document.querySelector('.md-version__link'); ++i) {
      await new Promise(done => setTimeout(done, 100));
    }
    all = all.concat(faults(page, width, frame.contentWindow));
    frame.remove();
  }
  await fetch('/faults', {method: 'POST', body: JSON.stringify(all)});
}
run().catch(error => fetch('/faults', {method: 'POST', body: JSON.stringify([String(error)])}));
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    pages: list[str] = []
    faults: list[str] | None = None
    done = threading.Event()

    def do_POST(self):  # noqa: N802
        Handler.faults = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        Handler.done.set()

    def do_GET(self):  # noqa: N802
        own = {"/check.html": CHECK, "/pages.json": json.dumps({"pages": Handler.pages, "widths": WIDTHS})}
        if self.path not in own:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if "html" in self.path else "application/json")
        self.end_headers()
        self.wfile.write(own[self.path].encode())

    def log_message(self, *_):
        pass


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def look(browser, site, folder):
    """What a browser finds wrong."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1500,1000"]
    url = f"http://127.0.0.1:{server.server_port}/check.html"
    with (folder / "browser.log").open("w") as log:
        command = [browser, *flags, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0", url]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)})
        try:
            in_time = Handler.done.wait(600)
        finally:
            process.terminate()
            process.wait()
            server.shutdown()
    assert in_time, "the browser told nothing in ten minutes:\n" + (folder / "browser.log").read_text()[-2000:]
    return Handler.faults


def check_versions(site):
    """The newest version comes first and is where the front door leads; the earlier one is offered too."""
    listed = json.loads((site / "versions.json").read_text())
    assert [(item["version"], item["aliases"]) for item in listed] == [(VERSION, ["latest"]), ("0.0", [])], listed
    assert f'url={VERSION}/"' in (site / "index.html").read_text()
    refused = subprocess.run(
        [sys.executable, SOURCE / "scripts/site_versions.py", site, "0.2"], capture_output=True, text=True
    )
    assert refused.returncode == 1 and "0.2': expected a page index.html" in refused.stderr, refused


def main():
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        skip("no browser: apt-get install chromium")
    mkdocs = Path(sys.executable).with_name("mkdocs")
    if not mkdocs.exists():
        skip("mkdocs is not installed (scripts/bootstrap.sh --tests installs it)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = folder / "site"
        (site / "0.0").mkdir(parents=True)
        (site / "0.0" / "index.html").write_text("an earlier version")
        command = [
            mkdocs,
            "build",
            "--quiet",
            "--strict",
            "--config-file",
            SOURCE / "mkdocs.yml",
            "--site-dir",
            site / VERSION,
        ]
        subprocess.run(command, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
        subprocess.run([sys.executable, SOURCE / "scripts/site_versions.py", site, VERSION], check=True)
        check_versions(site)
        Handler.pages = sorted(page.relative_to(site).as_posix() for page in (site / VERSION).rglob("index.html"))
        assert len(Handler.pages) == len(list((SOURCE / "docs").rglob("*.md"))), Handler.pages
        assert "<img" in (site / VERSION / "index.html").read_text().split("<article")[1], (
            "expected a picture on the front page"
        )
        found = look(browser, site, folder)
    print("\n".join(found) or f"{len(Handler.pages)} pages at {WIDTHS} pixels")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
