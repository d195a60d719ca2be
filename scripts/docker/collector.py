# ruff: noqa: INP001 (runs alone in a container)
"""Stands in for a trace collector: takes OTLP/HTTP at port 4318, prints a line per span.

The line: service name, trace id, span name, tabs between.
"""

import gzip
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_SERVICE_NAME = "service.name"


class Collector(BaseHTTPRequestHandler):
    """POST /v1/traces with a protobuf body, as OpenTelemetry's exporters send it."""

    def do_POST(self) -> None:
        """Print the spans of one batch."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {one.key: one.value.string_value for one in group.resource.attributes}
            for scope in group.scope_spans:
                for span in scope.spans:
                    fields = (attributes[_SERVICE_NAME], span.trace_id.hex(), span.name)
                    sys.stdout.write("\t".join(fields) + "\n")
        sys.stdout.flush()
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing about requests: the output is spans alone."""


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 4318), Collector).serve_forever()  # noqa: S104
