"""Serve this page with exported students, to this machine alone.

    python examples/browser/serve.py --classifier ARTEFACT [--reader ARTEFACT]

An artefact is a folder that `lightning-distilbert export --format onnx-int8` wrote: of text classification or intents
for --classifier, of question answering for --reader. Python's standard library is all that this needs.

`python -m http.server` serves the page as well, with the folders copied to models/classifier and models/reader. It
cannot send the headers that a browser wants before it gives WebAssembly more than one thread.
"""

import argparse
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

PAGE = Path(__file__).resolve().parent
HEADERS = {
    # these two isolate the page, without which there are no threads for WebAssembly
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    # no other server is asked for anything
    "Content-Security-Policy": "default-src 'self' blob:; script-src 'self' 'wasm-unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # asked again each time, so that a student exported anew is the one that runs
    "Cache-Control": "no-cache",
}
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


class Handler(SimpleHTTPRequestHandler):
    """Serves the page's folder, and each artefact under models/."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES
    protocol_version = "HTTP/1.1"

    def __init__(self, models, verbose, *request):
        self.models, self.verbose = models, verbose
        super().__init__(*request, directory=str(PAGE))

    def translate_path(self, path):
        parts = [part for part in unquote(urlsplit(path).path).split("/") if part]
        if len(parts) == 3 and parts[0] == "models" and parts[1] in self.models and ".." not in parts:
            return str(self.models[parts[1]] / parts[2])
        return super().translate_path(path)

    def list_directory(self, path):
        self.send_error(404, "No such file")

    def end_headers(self):
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args):
        if self.verbose:
            super().log_message(*args)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classifier", type=Path, help="the folder of an exported classifier")
    parser.add_argument("--reader", type=Path, help="the folder of an exported student that answers questions")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--verbose", action="store_true", help="print each request")
    arguments = parser.parse_args()
    given = {"classifier": arguments.classifier, "reader": arguments.reader}
    models = {name: folder.expanduser().resolve() for name, folder in given.items() if folder is not None}
    for name, folder in models.items():
        if not (folder / "manifest.json").is_file():
            parser.error(f"--{name}: {str(folder)!r} holds no manifest.json, so that it is no exported student")
    if not (PAGE / "node_modules").is_dir():
        parser.error(f"transformers.js is missing; run: npm ci --ignore-scripts --prefix {PAGE}")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", arguments.port), partial(Handler, models, arguments.verbose))
    except (OSError, OverflowError) as error:
        parser.error(f"--port {arguments.port}: {error}")
    with server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
