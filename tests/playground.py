#!/usr/bin/env python3
"""Tests the page of `train serve` in headless Chromium, and can take its picture.

    pip install playwright        # and a browser: apt install chromium, or playwright install chromium
    python tests/playground.py target/release/train [--picture docs/playground.png]

It needs no network. Without playwright or a browser it tests nothing, says so, and exits with 77.
"""
import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("train")
parser.add_argument("--model", default="data/demo/base")
parser.add_argument("--picture", type=pathlib.Path)
args = parser.parse_args()


def skip(reason):
    print(f"SKIPPED: the page was NOT tested: {reason}", file=sys.stderr)
    sys.exit(77)


try:
    from playwright.sync_api import Error, sync_playwright
except ImportError:
    skip("playwright is not installed (pip install playwright)")
# A browser of the system, or else playwright's own.
SYSTEM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
PROBLEM = {"problem_id": "shoes", "description": "How many shoes are n pairs?", "tests": [
    {"input": "1", "output": "2"}, {"input": "5", "output": "10"}, {"input": "7", "output": "15"}],
    "terms": ["0", "2", "4", "6", "8", "10"], "examples": [{"input": "2", "output": "4"}]}
ANSWER = "Case 1: 3 -> 6\nCase 2: 4 -> 9\nCase 3: 77 -> 1\n```python\nprint(2 * int(input()))\n```"


def texts(page, selector):
    rows = page.query_selector_all(selector)
    return [[cell.inner_text().strip() for cell in row.query_selector_all("td")] for row in rows]


def wait_until(page, condition):
    """Not Playwright's own: it evaluates text in the page, which the page forbids."""
    ends = time.monotonic() + 120
    while not page.evaluate(condition):
        assert time.monotonic() < ends, f"never: {condition}"
        page.wait_for_timeout(20)


def check_real_model(page):
    """The bundled model answers: what streams is what is complete in the end."""
    wait_until(page, "document.querySelectorAll('#problem option').length > 1")
    page.keyboard.press("Control+Enter")
    wait_until(page, "document.getElementById('response').textContent.length > 0")
    wait_until(page, "!document.getElementById('ask').disabled")
    assert page.inner_text("#state") in ("complete", "cut off at its limit of tokens"), page.inner_text("#state")
    assert page.inner_text("#verdict") != ""


def check_own_problem(page):
    """A typed problem, with an answer that the test gives in the model's place."""
    page.select_option("#problem", "")
    assert page.is_visible("#terms")
    page.fill("#terms", "1, 2")
    page.click("#ask")
    wait_until(page, "document.getElementById('state').textContent.includes('four')")
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
              for piece in re.findall(".{1,7}", ANSWER, re.DOTALL)]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
    page.fill("#terms", "0 2 4 6 8 11")
    page.fill("#offset", "0")
    page.click("#ask")
    wait_until(page, "!document.getElementById('ask').disabled")
    assert page.inner_text("#response") == ANSWER, page.inner_text("#response")
    assert page.inner_text("#program").strip() == "print(2 * int(input()))"
    # The first wrong case ends the judging; here it is the last.
    assert page.inner_text("#verdict") == "wrong answer", page.inner_text("#verdict")
    cases = texts(page, "#cases tr")
    assert cases == [["0", "0", "0", "✓ right"], ["3", "6", "6", "✓ right"], ["4", "8", "8", "✓ right"],
                     ["5", "11", "10", "✗ wrong"]], cases
    own = texts(page, "#own_cases tr")
    assert own == [["3", "6", "6", "✓ right"], ["4", "9", "8", "✗ wrong"], ["77", "1", "unknown", "?"]], own
    page.unroute("**/v1/chat/completions")


def check_stop(page):
    """Escape stops an answer, and the page is ready for the next."""
    page.fill("#terms", "0 2 4 6 8 10")
    page.fill("#max_tokens", "600")
    page.click("#ask")
    wait_until(page, "document.getElementById('state').textContent !== ''")
    page.keyboard.press("Escape")
    wait_until(page, "!document.getElementById('ask').disabled")


def main():
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as directory:
        try:
            browser = playwright.chromium.launch(executable_path=SYSTEM, args=["--no-sandbox"])
        except Error as error:
            skip(f"no browser: {str(error).splitlines()[0]}")
        problems = pathlib.Path(directory) / "problems.jsonl"
        known = pathlib.Path("data/demo/test.jsonl").read_text().splitlines()[:20]
        problems.write_text("\n".join([*known, json.dumps(PROBLEM)]))
        server = subprocess.Popen([args.train, "serve", "--model", args.model, "--port", "0", "--problems", problems],
                                  stderr=subprocess.PIPE, text=True)
        try:
            for line in server.stderr:
                if address := re.search(r"http://\S+", line):
                    break
            else:
                raise SystemExit("the server did not start")
            for scheme, size in [("light", (1280, 900)), ("dark", (390, 844))]:
                page = browser.new_page(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
                failures, elsewhere = [], []
                page.on("pageerror", lambda error: failures.append(str(error)))
                page.on("request", lambda request: elsewhere.append(request.url)
                        if not request.url.startswith((address[0], "data:", "blob:")) else None)
                page.goto(address[0])
                check_real_model(page)
                if args.picture and scheme == "light":
                    page.screenshot(path=args.picture, full_page=True)
                check_own_problem(page)
                check_stop(page)
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= size[0], f"the page is {width} wide on a screen of {size[0]}"
                back = page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (back == "rgb(255, 255, 255)") == (scheme == "light"), back
                assert not failures and not elsewhere, (failures, elsewhere)
                page.close()
            browser.close()
        finally:
            server.terminate()
            assert server.wait(60) == 0, "the server did not end in an orderly way"
    print("the page works in light on a desktop and in dark on a phone")


main()
