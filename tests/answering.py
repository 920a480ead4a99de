"""A server with one fixed answer, to test the errors for servers that refuse or are not Elasticsearch."""

import http.server
import threading
import time
from contextlib import contextmanager

HTML = b"<html><body>It works!</body></html>"
PRODUCT = (("X-Elastic-Product", "Elasticsearch"),)


@contextmanager
def answering(status, body=HTML, content_type="text/html", wait_s=0.0, headers=()):
    """The URL of a server that gives the same answer to every request."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(wait_s)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_HEAD = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
